package mm

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"
)

// Store keeps numbered slots of PageSize bytes. Stores are dumb: which slots are in use, what their checksums are and
// when to grow is the page file's business. Implementations are in mm/store; all methods may be called at once from
// several goroutines.
type Store interface {
	// ReadSlots fills bufs, one after the other, with the consecutive slots from slot. Each buf is page-aligned and a
	// multiple of PageSize long.
	ReadSlots(slot uint64, bufs [][]byte) error
	// WriteSlots is the same for writing.
	WriteSlots(slot uint64, bufs [][]byte) error
	// Grow makes room for this many slots in all, so that writing them cannot fail for want of space.
	Grow(slots uint64) error
	// Discard gives the space of n slots back; their contents are undefined afterwards.
	Discard(slot, n uint64) error
	Close() error
}

// pageFile is a store with its books: the slot bitmap, the guard's record a slot, and how far it has grown.
type pageFile struct {
	index    int // in System.files, and in every location
	name     string
	store    Store
	max      uint64 // slots
	listener *Listener
	guard    guard
	discards bool // the store is told at once of a slot that is free; it must not do I/O

	mu sync.Mutex
	// +checklocks:mu
	used []uint64 // bitmap
	// +checklocks:mu
	size uint64 // slots that exist
	// +checklocks:mu
	count uint64 // slots in use
	// +checklocks:mu
	peak uint64
	// +checklocks:mu
	hint uint64 // next-fit
	// +checklocks:mu
	stuck time.Time // when growing last failed
}

func newPageFile(index int, c PageFileConfig, encrypt bool, l *Listener) (*pageFile, error) {
	g, err := newGuard(index, c.Max, encrypt)
	if err != nil {
		return nil, err
	}
	return &pageFile{index: index, name: c.Name, store: c.Store, max: c.Max, guard: g, listener: l}, nil
}

func (p *pageFile) close() error {
	return errors.Join(p.store.Close(), p.guard.close())
}

// limit is how many slots the file can have as far as is known: its maximum, or its size if it could not grow lately.
func (p *pageFile) limit() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stuck.IsZero() && time.Since(p.stuck) < retryGrowth {
		return p.size
	}
	return p.max
}

// grow extends the file by at least n slots if it can, and says by how many.
func (p *pageFile) grow(n uint64) (uint64, error) {
	p.mu.Lock()
	size := p.size
	p.mu.Unlock()
	want := min(p.max, size+n)
	if want == size {
		return 0, nil
	}
	if err := p.store.Grow(want); err != nil {
		p.listener.storeError(p.name, "grow", want, err)
		p.mu.Lock()
		p.stuck = time.Now()
		p.mu.Unlock()
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = time.Time{}
	p.size = want
	for uint64(len(p.used))*64 < want {
		p.used = append(p.used, 0)
	}
	return want - size, nil
}

// alloc takes up to n consecutive free slots, as many as it finds together without searching long. got is 0 if there
// is none.
func (p *pageFile) alloc(n uint64) (slot, got uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == p.size {
		return 0, 0
	}
	slot, got = p.findLocked(p.hint, p.size, n)
	if got < n {
		if s, g := p.findLocked(0, min(p.hint, p.size), n); g > got {
			slot, got = s, g
		}
	}
	for i := slot; i < slot+got; i++ {
		p.used[i/64] |= 1 << (i % 64)
	}
	p.count += got
	p.peak = max(p.peak, p.count)
	p.hint = slot + got
	return slot, got
}

// findLocked returns the first run of n free slots in [from, to), or the longest one it met.
// +checklocks:p.mu
func (p *pageFile) findLocked(from, to, n uint64) (slot, got uint64) {
	const patience = 256 // runs to look at before the longest so far has to do
	for looked := 0; from < to && looked < patience; looked++ {
		from = p.skipLocked(from, to, ^uint64(0))
		end := p.skipLocked(from, min(to, from+n), 0)
		if end-from > got {
			slot, got = from, end-from
		}
		if got == n {
			break
		}
		from = end
	}
	return slot, got
}

// skipLocked returns the first slot in [i, to) whose bit differs from the bits of same (all ones: skip used slots).
// +checklocks:p.mu
func (p *pageFile) skipLocked(i, to uint64, same uint64) uint64 {
	for i < to {
		w := (p.used[i/64] ^ same) >> (i % 64)
		if w != 0 {
			return min(to, i+uint64(bits.TrailingZeros64(w)))
		}
		i = (i/64 + 1) * 64
	}
	return to
}

// free gives one slot back.
func (p *pageFile) free(slot uint64) {
	if p.discards {
		_ = p.store.Discard(slot, 1) // a slot in use: nothing can fail
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[slot/64]&(1<<(slot%64)) == 0 {
		panic(fmt.Sprintf("mm: page file %s: slot %d freed twice", p.name, slot))
	}
	p.used[slot/64] &^= 1 << (slot % 64)
	p.count--
}

func (p *pageFile) info() PageFileInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PageFileInfo{Name: p.name, Size: p.size, Max: p.max, Used: p.count, Peak: p.peak}
}

// write stores pages in the consecutive slots from slot, which the caller owns.
func (p *pageFile) write(slot uint64, pages [][]byte) error {
	sealed := p.guard.seal(slot, pages)
	defer p.guard.release(sealed)
	if err := p.store.WriteSlots(slot, sealed); err != nil {
		p.listener.storeError(p.name, "write", slot, err)
		return err
	}
	return nil
}

// read fills pages from the consecutive slots from slot and opens them. The result has an error for each page that is
// not what was written, nil if all are: one bad page does not spoil its neighbours.
func (p *pageFile) read(slot uint64, pages [][]byte) []error {
	err := p.store.ReadSlots(slot, pages)
	var errs []error
	for i, b := range pages {
		at := slot + uint64(i)
		e := err
		if e != nil && len(pages) > 1 {
			e = p.store.ReadSlots(at, pages[i:i+1])
		}
		switch {
		case e != nil:
			p.listener.storeError(p.name, "read", at, e)
		default:
			if e = p.guard.open(at, b); e != nil {
				p.listener.checksumError(p.name, at)
			}
		}
		if e != nil {
			if errs == nil {
				errs = make([]error, len(pages))
			}
			errs[i] = e
		}
	}
	return errs
}

// isUsed says whether a slot is in use.
func (p *pageFile) isUsed(slot uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slot < p.size && p.used[slot/64]&(1<<(slot%64)) != 0
}
