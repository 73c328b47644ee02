package heap

import (
	"context"
	"sync"
)

// Thread is a caller of the heap functions: HeapLock belongs to one. Goroutines that use one at a time do not keep each
// other waiting for a HeapLock, as a thread does not; otherwise that does no harm.
type Thread struct {
	heaps *Heaps
	ctx   context.Context
	self  *Thread // who it is: With makes others of the same thread
}

// With is the same thread, whose waits for a HeapLock end with ctx.
func (t *Thread) With(ctx context.Context) *Thread { return &Thread{t.heaps, ctx, t.self} }

// section is a critical section: a lock its owner may take again, and for which others wait until their context ends.
type section struct {
	mu sync.Mutex
	// +checklocks:mu
	owner *Thread // the self of one
	// +checklocks:mu
	depth int
	// freed is closed when the owner leaves, if somebody waits.
	// +checklocks:mu
	freed chan struct{}
}

// tryEnter takes the section unless another thread has it.
func (s *section) tryEnter(t *Thread) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != nil && s.owner != t.self {
		return false
	}
	s.owner = t.self
	s.depth++
	return true
}

// enter takes the section, waiting for it until t's context ends.
func (s *section) enter(t *Thread) error {
	for !s.tryEnter(t) {
		if err := s.wait(t); err != nil {
			return err
		}
	}
	return nil
}

// wait returns once the section may be free.
func (s *section) wait(t *Thread) error {
	s.mu.Lock()
	if s.owner == nil {
		s.mu.Unlock()
		return nil
	}
	if s.freed == nil {
		s.freed = make(chan struct{})
	}
	freed := s.freed
	s.mu.Unlock()
	select {
	case <-freed:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// leave gives the section back once, and reports false if t does not have it.
func (s *section) leave(t *Thread) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != t.self {
		return false
	}
	if s.depth--; s.depth > 0 {
		return true
	}
	s.owner = nil
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
	return true
}
