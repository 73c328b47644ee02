package mm

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// pressure is how much time requests lose for want of memory, as the kernel's pressure stall information has it for tasks
// (Documentation/accounting/psi.rst): some is time in which at least one request waited, full time in which one waited
// and none got on. A request waits when it reads a page back, waits for another's read, is delayed because the host holds
// too much, or finds neither frame nor slot.
//
// Requests that come and go while none waits cost one atomic count each, in a lane of their segment's: they are all there
// is for a soft fault besides the fault itself.
type pressure struct {
	lanes   [pressureLanes]lane
	waiting atomic.Int32 // stalled, for those who look without the lock

	mu sync.Mutex
	// +checklocks:mu
	active int // requests under way, as of since
	// +checklocks:mu
	stalled int // of which waiting
	// +checklocks:mu
	since time.Time // when the two last changed
	// +checklocks:mu
	some stallTime
	// +checklocks:mu
	full stallTime
	// +checklocks:mu
	averaged time.Time // when the averages were last brought up to date
}

const pressureLanes = 16

// lane counts requests under way, in cache lines of its own.
type lane struct {
	n atomic.Int64
	_ [120]byte
}

// stallTime is time lost, and the share of time that this was lately.
type stallTime struct {
	total time.Duration
	seen  time.Duration // of total, what the averages know of
	avg   [len(pressureWindows)]float64
}

// pressureWindows are what the averages go back.
var pressureWindows = [3]time.Duration{10 * time.Second, 60 * time.Second, 300 * time.Second}

// PressureInfo is one line of pressure stall information.
type PressureInfo struct {
	Avg   [3]float64 // percent of time over the last 10, 60 and 300 seconds
	Total time.Duration
}

// advance books the time since the last change. The time now is the caller's.
// +checklocks:p.mu
func (p *pressure) advance(now time.Time) {
	if p.stalled > 0 {
		lost := now.Sub(p.since)
		p.some.total += lost
		if p.stalled >= p.active {
			p.full.total += lost
		}
	}
	p.since = now
}

// change books the time until now, for what changes from now on.
func (p *pressure) change(stalled int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(time.Now())
	p.active = 0
	for i := range p.lanes {
		p.active += int(p.lanes[i].n.Load())
	}
	p.stalled += stalled
	p.waiting.Store(int32(p.stalled))
}

// enter says that a request of a segment has begun, leave that it has ended.
func (p *pressure) enter(seg uint32) { p.count(seg, 1) }
func (p *pressure) leave(seg uint32) { p.count(seg, -1) }

func (p *pressure) count(seg uint32, n int64) {
	p.lanes[seg%pressureLanes].n.Add(n)
	if p.waiting.Load() > 0 { // else no time is lost, whoever comes and goes
		p.change(0)
	}
}

// stall says that a request waits for want of memory, resume that it goes on.
func (p *pressure) stall()  { p.change(1) }
func (p *pressure) resume() { p.change(-1) }

// average brings the averages up to date. The balance set manager calls it once a second.
func (p *pressure) average(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(now)
	if !p.averaged.IsZero() && now.After(p.averaged) {
		over := now.Sub(p.averaged)
		p.some.average(over)
		p.full.average(over)
	}
	p.averaged = now
}

// average adds a period to the averages: exponential ones, as those of the load are.
func (s *stallTime) average(over time.Duration) {
	share := 100 * float64(s.total-s.seen) / float64(over)
	s.seen = s.total
	for i, w := range pressureWindows {
		keep := math.Exp(-float64(over) / float64(w))
		s.avg[i] = s.avg[i]*keep + min(share, 100)*(1-keep)
	}
}

// info is both lines.
func (p *pressure) info() (some, full PressureInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance(time.Now())
	return PressureInfo{p.some.avg, p.some.total}, PressureInfo{p.full.avg, p.full.total}
}
