//go:build soak

package integration

import (
	"testing"
	"time"
)

// TestSoakRingBuffer passes messages through a ring that holds four, so that each of them is a store of the program that a
// process reads and the other way round.
func TestSoakRingBuffer(t *testing.T) { ringBuffer(t, 20000, 4, "") }

// TestSoakBusyViews is TestBusyViews for longer.
func TestSoakBusyViews(t *testing.T) {
	busyViews(t, compileC(t, "testdata/views.c"), "012345", 2*time.Minute)
}
