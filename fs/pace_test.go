package fs

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: a monitor's mount runs on one processor, and a busy one on all.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used []bool
		p := newPace(func(all bool) { used = append(used, all) })
		requests := func(n int, apart time.Duration) {
			for range n {
				p.request(time.Now())
				time.Sleep(apart)
			}
		}
		expect := func(when string, want ...bool) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if !slices.Equal(used, want) {
				t.Errorf("%s: all processors: %v, want %v", when, used, want)
			}
		}
		requests(300, calmTime/300)
		expect("from the start on")
		for range 100 {
			requests(7, 0)
			time.Sleep(time.Second / 10)
		}
		expect("read ten times a second", false)
		requests(3*busyRequests, busyTime/busyRequests/2)
		expect("busy", false, true)
		requests(1000, calmTime/300)
		expect("busy for seconds", false, true)
		time.Sleep(2 * calmTime)
		expect("calm", false, true, false)
		p.quicken()
		p.quicken()
		expect("a command", false, true, false, true)
		time.Sleep(2 * calmTime)
		expect("and nothing after it", false, true, false, true, false)
		p.close()
		p.quicken()
		time.Sleep(2 * calmTime)
		expect("ended", false, true, false, true, false, true)
	})
}
