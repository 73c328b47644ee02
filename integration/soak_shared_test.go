//go:build soak

package integration

import "testing"

// TestSoakRingBuffer passes messages through a ring that holds four, so that each of them is a store of the program that a
// process reads and the other way round.
func TestSoakRingBuffer(t *testing.T) { ringBuffer(t, 20000, 4, "") }
