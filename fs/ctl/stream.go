package ctl

import (
	"iter"
	"sync"
)

// Stream is a document that is rendered while it is read: however long it is, it costs one buffer, and it is not of one
// moment but of as many as its reading takes. It can be read once, from the beginning to the end.
type Stream struct {
	mu sync.Mutex
	// +checklocks:mu
	next func() ([]byte, bool)
	// +checklocks:mu
	stop func()
	// +checklocks:mu
	rest []byte // of the last piece
}

// NewStream renders d as text or as JSON, a piece at a time. The stream must be closed.
func NewStream(d *Doc, asJSON bool) *Stream {
	next, stop := iter.Pull(func(yield func([]byte) bool) {
		w := yieldWriter(yield)
		if asJSON {
			_ = d.WriteJSON(w)
		} else {
			_ = d.WriteText(w)
		}
	})
	return &Stream{next: next, stop: stop}
}

// yieldWriter hands what is written on. Once nobody wants more it fails, which ends the rendering.
type yieldWriter func([]byte) bool

func (y yieldWriter) Write(p []byte) (int, error) {
	if !y(p) {
		return 0, errClosed
	}
	return len(p), nil
}

// Read fills p with what comes next; less only at the end.
func (s *Stream) Read(p []byte) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n < len(p) {
		if len(s.rest) == 0 {
			var ok bool
			if s.rest, ok = s.next(); !ok {
				break
			}
		}
		c := copy(p[n:], s.rest)
		n, s.rest = n+c, s.rest[c:]
	}
	return n
}

// Close ends the rendering.
func (s *Stream) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	s.rest = nil
}
