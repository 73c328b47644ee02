package process

import (
	"errors"
	"time"
)

// Calls that wait for the host: for what it has to send of a file that programs store into, or for another call that does so.
// What it sends are requests, of which only so many are under way at once, and so may be those in which the calls come. Calls
// that have passed a gate of the filesystem's come here as well, and find a place.

const (
	// hostWaits is how many may wait at once: less than half of the requests that the host kernel sends without waiting for
	// others (max_background of FUSE).
	hostWaits = 24
	// hostPatience is how long as many others wait to be let in. Those beyond, whose requests would keep the host from sending
	// its own for so long, wait crowdPatience.
	hostPatience  = time.Second
	crowdPatience = 50 * time.Millisecond
)

// enter lets a call wait for the host, with no pages held and no edit under way; leave ends that. Busy: too many do. Nothing
// that is done before leave may enter again.
func (m *Machine) enter() (leave func(), err error) {
	leave = func() { <-m.waiting }
	select {
	case m.waiting <- struct{}{}:
		return leave, nil
	default:
	}
	patience := hostPatience
	if m.queue.Add(1) > hostWaits {
		patience = crowdPatience
	}
	defer m.queue.Add(-1)
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case m.waiting <- struct{}{}:
		return leave, nil
	case <-t.C:
		return nil, Busy
	}
}

// waitingFor runs f, which waits for the host. Busy.
func (m *Machine) waitingFor(f func() error) error {
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	return f()
}

// Plain lets a call begin that must not wait for the host on account of the process's memory: it has no view of a file, and gets
// none before leave is called. ok is false if it has one, or is just getting it. The analyser cannot follow the lock to leave.
//
// +checklocksignore
func (p *Process) Plain() (leave func(), ok bool) {
	if !p.viewing.TryRLock() {
		return nil, false
	}
	p.mu.Lock()
	_, waits := p.viewsAmong(0, everything)
	p.mu.Unlock()
	if waits {
		p.viewing.RUnlock()
		return nil, false
	}
	return func() { p.viewing.RUnlock() }, true
}

// waits says whether an access to the view may have to wait for the host.
func (w *view) waits() bool { return w.section.file.Segment().Hosted() }

// ErrView is how an access ends that was not to touch views and has met one.
var ErrView = errors.New("the memory is a view")

// errAgain: the pages are not any more what they were when the call began.
var errAgain = errors.New("the pages have changed meanwhile")

// revocation is what the host has been told of a change of pages: that what it holds of private memory is not so any more.
type revocation struct {
	window *Window
	view   bool // the first page is a view's, of which the host holds nothing
	end    func(error)
}

// covers says whether the revocation is of pages that are of view v, or of none, and of everything that the host may hold.
// +checklocks:p.mu
func (r *revocation) covers(p *Process, v *vad) bool {
	return r == nil || r.window == p.window.Load() && (r.window == nil || r.view == (v != nil))
}

// revise does a change of what the pages of a range are, which may be called again if they are not as they were when it began;
// gone: what they held is lost. No pages are held.
func (p *Process) revise(addr, size uint64, gone bool, do func(r *revocation) error) error {
	for {
		r := p.revoking(addr, size, gone)
		err := do(r)
		r.end(err)
		if !errors.Is(err, errAgain) {
			return err
		}
	}
}

// revoking begins a change of pages. One of a view's is of no concern to the host, and waits for others that the host must not
// wait for.
func (p *Process) revoking(addr, size uint64, gone bool) *revocation {
	r := &revocation{window: p.window.Load(), end: nothing}
	if r.window == nil {
		return r
	}
	first, last := span(addr, size)
	p.mu.Lock()
	v, _ := p.stretch(first, last)
	p.mu.Unlock()
	if r.view = v != nil; !r.view {
		r.end = r.window.edit(&edit{first: first, last: last, gone: gone})
	}
	return r
}
