package fs

import (
	"errors"
	"sync"

	"memfs/mapping"
	"memfs/mm"
)

// deletions are large sections that are being given back beside the requests. Whoever finds no space waits for them: what
// was removed is free (rm and then write must work on a full mount, as on tmpfs).
type deletions struct {
	mu sync.Mutex
	// +checklocks:mu
	pending int
	// +checklocks:mu
	ended chan struct{} // closed when the last pending one has ended; nil if none is pending
}

// start deletes a section beside the requests.
func (d *deletions) start(s *mapping.Section) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending++; d.ended == nil {
		d.ended = make(chan struct{})
	}
	go func() {
		s.Delete()
		d.end()
	}()
}

func (d *deletions) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending--; d.pending == 0 {
		close(d.ended)
		d.ended = nil
	}
}

// wait waits until none is pending, and says whether one was.
func (d *deletions) wait() bool {
	d.mu.Lock()
	ended := d.ended
	d.mu.Unlock()
	if ended == nil {
		return false
	}
	<-ended
	return true
}

// withSpace does something that may find no space left, again if a deletion has ended since. A deletion waits for store
// I/O at most.
func (f *fileSystem) withSpace(do func() error) error {
	err := do()
	for errors.Is(err, mm.StatusCommitmentLimit) && f.deletions.wait() {
		err = do()
	}
	return err
}
