package ctl

import (
	"fmt"
	"iter"
	"sync"
)

// Stream is a document that is rendered while it is read: however long it is, it costs one buffer, and it is not of one
// moment but of as many as its reading takes. It can be read once, from the beginning to the end; what was read last can be
// read again, since head(1) and the shell's read take more than they want and seek back.
type Stream struct {
	mu sync.Mutex
	// +checklocks:mu
	next func() ([]byte, bool)
	// +checklocks:mu
	stop func()
	// +checklocks:mu
	rest []byte // of the last piece
	// +checklocks:mu
	at int64 // where rest begins
	// +checklocks:mu
	past []byte // what lies before it, backBytes at most
}

// backBytes is how far back a stream can be read again: more than programs read at once to look for the end of a line.
const backBytes = 16 << 10

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

// ReadAt fills p from an offset on; less only at the end.
func (s *Stream) ReadAt(p []byte, off int64) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	back := s.at - off
	if back < 0 || back > int64(len(s.past)) {
		return 0, fmt.Errorf("offset %d has been left behind or not been come to: the stream is at %d", off, s.at)
	}
	n = copy(p, s.past[int64(len(s.past))-back:])
	for n < len(p) {
		if len(s.rest) == 0 {
			var ok bool
			if s.rest, ok = s.next(); !ok {
				break
			}
		}
		c := copy(p[n:], s.rest)
		s.past = append(s.past, s.rest[:c]...)
		n, s.at, s.rest = n+c, s.at+int64(c), s.rest[c:]
		if len(s.past) > 2*backBytes {
			s.past = append(s.past[:0], s.past[len(s.past)-backBytes:]...)
		}
	}
	return n, nil
}

// Close ends the rendering.
func (s *Stream) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	s.rest, s.past = nil, nil
}
