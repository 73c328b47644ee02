package fs

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// busyRequests within busyTime make a mount busy; a monitor that reads a control file twenty times a second does not.
	busyRequests = 64
	busyTime     = 200 * time.Millisecond
	// calmRequests or fewer within calmTime have it calm again.
	calmRequests = 160
	calmTime     = time.Second
)

// pace has a mount that nobody uses much run on one of Go's processors, and one that is busy on all.
//
// A thread that waits for the host's next request keeps its processor for 10 ms, unless that is the only one, and meanwhile the
// runtime's monitor thread (sysmon) wakes up every 20 µs. For who reads a control file a few times a second this is two
// thirds of what the mount costs. With one processor it is taken from the thread at the monitor's next look.
//
// Whoever sets GOMAXPROCS has said how many processors it is to be.
type pace struct {
	requests atomic.Uint64
	calm     atomic.Bool
	mark     atomic.Int64 // when the last busyRequests had been, while calm: since start
	start    time.Time

	mu sync.Mutex
	// +checklocks:mu
	use func(all bool) // of Go's processors: one or all
	// +checklocks:mu
	timer *time.Timer // runs while busy; nil after close
	// +checklocks:mu
	seen uint64 // requests when it was set
}

// newPace begins busy: much is asked of a mount that has just been made.
func newPace(use func(all bool)) *pace {
	p := &pace{start: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.use = use
	p.timer = time.AfterFunc(calmTime, p.look)
	return p
}

// processors is newPace of the process; nil where there is nothing to choose.
func processors() *pace {
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) == 1 {
		return nil
	}
	return newPace(func(all bool) {
		if all {
			runtime.SetDefaultGOMAXPROCS()
		} else {
			runtime.GOMAXPROCS(1)
		}
	})
}

// request counts one that began at a time.
func (p *pace) request(began time.Time) {
	if p == nil {
		return
	}
	if n := p.requests.Add(1); !p.calm.Load() || n%busyRequests != 0 {
		return
	}
	now := int64(began.Sub(p.start))
	if now-p.mark.Swap(now) < int64(busyTime) {
		p.quicken()
	}
}

// quicken makes the mount busy: by many requests, or by one that may be much work.
func (p *pace) quicken() {
	if p == nil || !p.calm.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer == nil || !p.calm.Load() {
		return
	}
	p.calm.Store(false)
	p.seen = p.requests.Load()
	p.use(true)
	p.timer.Reset(calmTime)
}

// look has a busy mount calm again if little was asked of it.
func (p *pace) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer == nil {
		return
	}
	n := p.requests.Load()
	if n-p.seen > calmRequests {
		p.seen = n
		p.timer.Reset(calmTime)
		return
	}
	p.mark.Store(-int64(busyTime)) // what comes next counts from the last full busyRequests
	p.calm.Store(true)
	p.use(false)
}

// close leaves the process all of its processors.
func (p *pace) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
		p.use(true)
	}
}
