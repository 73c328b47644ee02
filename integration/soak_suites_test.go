//go:build soak

package integration

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// soakEnd is when a test of many rounds begins no further one: a quarter of MEMFS_SOAK (10m) from now.
func soakEnd(t *testing.T) time.Time {
	length := 10 * time.Minute
	if s := os.Getenv("MEMFS_SOAK"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		must(t, err)
	}
	return time.Now().Add(length / 4)
}

// TestSoakFsx is TestFsx with ever other seeds, half of the rounds while everything is trimmed.
func TestSoakFsx(t *testing.T) {
	end := soakEnd(t)
	for round := 1; time.Now().Before(end) && !t.Failed(); round++ {
		memory := []string{"16M", "32M", "64M"}[round%3]
		for _, kind := range fsxKinds {
			t.Run(memory+" "+kind.name+" "+strconv.Itoa(round), func(t *testing.T) {
				m := mountMemfs(t, options{memory: memory, limit: 15 * time.Minute})
				if round%2 == 0 {
					defer m.trimLoop(10 * time.Millisecond)()
				}
				fsxRun(t, m.dir, m.path(".proc/ctl"), round, kind, "-seeds", "4", "-ops", "2000")
			})
		}
	}
}

// TestSoakFsstress is TestFsstress with more processes and ever other seeds, always on the same mount.
func TestSoakFsstress(t *testing.T) {
	end := soakEnd(t)
	m := mountMemfs(t, options{memory: "16M", limit: time.Until(end) + 10*time.Minute})
	for round := 1; time.Now().Before(end) && !t.Failed(); round++ {
		m.fsstress(t, round, 8, 10000)
	}
}
