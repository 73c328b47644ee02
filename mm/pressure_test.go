package mm

import (
	"math"
	"testing"
	"time"
)

// TestPressure plays requests that come, wait and go against a clock of the test's own.
//
// +checklocksignore
func TestPressure(t *testing.T) {
	var p pressure
	now := time.Unix(1000, 0)
	at := func(seconds int, active, stalled int) {
		t.Helper()
		now = now.Add(time.Duration(seconds) * time.Second)
		p.advance(now)
		p.active, p.stalled = active, stalled
	}
	p.average(now)
	at(0, 1, 0) // one request gets on
	at(2, 2, 1) // another one waits: some
	at(3, 2, 2) // both wait: some and full
	at(4, 1, 1) // one is done, the other waits on: some and full
	at(1, 0, 0)
	at(5, 0, 0)
	if p.some.total != 8*time.Second || p.full.total != 5*time.Second {
		t.Errorf("some %v, full %v; want 8 s and 5 s", p.some.total, p.full.total)
	}
	p.average(now) // after 15 s
	for i, w := range []float64{10, 60, 300} {
		want := 100 * 8.0 / 15 * (1 - math.Exp(-15/w))
		if got := p.some.avg[i]; math.Abs(got-want) > 0.01 {
			t.Errorf("average of %v s is %.2f, want %.2f", w, got, want)
		}
	}
	for range 100 {
		now = now.Add(time.Second)
		p.average(now)
	}
	if got := p.some.avg[0]; got > 0.01 {
		t.Errorf("the average of 10 s is %.2f after 100 s of peace", got)
	}
}
