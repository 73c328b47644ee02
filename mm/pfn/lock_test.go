package pfn

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// eachProcessorCount runs a test with all processors and with one, where whoever waits for a part has to let its holder on.
func eachProcessorCount(t *testing.T, f func(t *testing.T)) {
	for _, n := range []int{runtime.NumCPU(), 1} {
		t.Run(fmt.Sprintf("GOMAXPROCS=%d", n), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
			f(t)
		})
	}
}

// TestPartLock counts with plain variables, one a part, under the lock of the part and under all of it, in phases with much
// of one and little of the other: what two hold at once loses counts.
//
// +checklocksignore
func TestPartLock(t *testing.T) {
	eachProcessorCount(t, func(t *testing.T) {
		const workers, rounds = 6, 20000
		var m partRWMutex
		var count [Parts]struct {
			n      int
			inside bool
			_      [cacheLines]byte
		}
		enter := func(p int) {
			if count[p].inside {
				t.Errorf("two hold part %d", p)
			}
			count[p].inside = true
			count[p].n++
			if count[p].n%256 == 0 {
				runtime.Gosched() // as if interrupted
			}
			count[p].inside = false
		}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range rounds {
					if often := i/1000%2 == 0; i%(4+60*w) == 0 && (often || w == 0) {
						m.Lock()
						for p := range count {
							enter(p)
						}
						m.Unlock()
						continue
					}
					p := Part((w + i/500) % Parts)
					h := m.RLock(p)
					enter(int(p))
					m.RUnlock(h)
				}
			})
		}
		wg.Wait()
		var got, want int
		for p := range count {
			got += count[p].n
		}
		for w := range workers {
			for i := range rounds {
				if often := i/1000%2 == 0; i%(4+60*w) == 0 && (often || w == 0) {
					want += Parts
				} else {
					want++
				}
			}
		}
		if got != want {
			t.Errorf("counted to %d, want %d", got, want)
		}
	})
}

// TestPartLockCloses has two threads open and close the lock as often as they can: one may be on its way to its part while
// the other closes it.
//
// +checklocksignore
func TestPartLockCloses(t *testing.T) {
	const rounds = 20_000
	var m partRWMutex
	var count [2]int
	var wg sync.WaitGroup
	for p := range Part(2) {
		wg.Go(func() {
			for range rounds {
				for range calmEnough {
					h := m.RLock(p)
					count[p]++
					m.RUnlock(h)
				}
				m.Lock()
				was := count
				for n := 0; n < 100 && count == was; n++ { // long enough for the other to get in, if it can
				}
				count = [2]int{was[0] + 1, was[1] + 1}
				m.Unlock()
			}
		})
	}
	wg.Wait()
	if want := (calmEnough + 2) * rounds; count != [2]int{want, want} {
		t.Errorf("counted to %v, want %d each", count, want)
	}
}

// TestPartLockOpens: parts that are asked for in a row are had without the mutex, and Lock takes that back.
//
// +checklocksignore
func TestPartLockOpens(t *testing.T) {
	var m partRWMutex
	for i := 1; i <= calmEnough; i++ {
		h := m.RLock(3)
		if whole := h == wholeHold; whole != (i < calmEnough) {
			t.Errorf("RLock %d in a row: whole %v", i, whole)
		}
		m.RUnlock(h)
	}
	a, b := m.RLock(3), m.RLock(4) // deadlocks if they are one
	m.RUnlock(a)
	m.RUnlock(b)
	m.Lock()
	if m.open.Load() {
		t.Error("the lock is open in Lock")
	}
	m.Unlock()
	if h := m.RLock(3); h != wholeHold {
		t.Error("the lock is open after Lock")
	} else {
		m.RUnlock(h)
	}
}
