package mm

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
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
	// Reserve makes room again for n slots that were discarded, so that writing them cannot fail for want of space.
	Reserve(slot, n uint64) error
	Close() error
}

// pageFile is a store with its books: the slot bitmap, the guard's record a slot, and how far it has grown.
type pageFile struct {
	index    int // in System.files, and in every location
	name     string
	priority int
	store    Store
	min      uint64 // slots that it always has
	max      uint64 // slots
	listener *Listener
	guard    guard
	discards bool   // the store is told at once of a slot that is free; it must not do I/O
	wipes    bool   // a slot that is freed is overwritten before anybody else has it
	freed    func() // called when a slot waits to be overwritten; it must not block

	mu sync.Mutex
	// +checklocks:mu
	used []uint64 // bitmap: the slots that cannot be handed out
	// +checklocks:mu
	wiping []uint64 // bitmap: of used, the slots that wait to be overwritten
	// +checklocks:mu
	away []bool // by chunk: its slots are used by nobody, and their space is the disk's again
	// +checklocks:mu
	top uint64 // slots that were ever laid out
	// +checklocks:mu
	size uint64 // of these, slots that exist: all but those in chunks that are away
	// +checklocks:mu
	count uint64 // slots in use by pages
	// +checklocks:mu
	towipe uint64 // bits set in wiping
	// +checklocks:mu
	peak uint64
	// +checklocks:mu
	hint uint64 // next-fit
	// +checklocks:mu
	wipeHint uint64
	// +checklocks:mu
	wipesNow bool // a run is being overwritten
	// +checklocks:mu
	idle bool // nothing was in use when the disk was last given space back
	// +checklocks:mu
	closing bool // no slot is handed out any more
	// +checklocks:mu
	stuck time.Time // when growing last failed
}

// chunkSlots is what goes back to the disk at once, in slots: 1 MiB. A multiple of 64.
const chunkSlots = 256

func newPageFile(index int, c PageFileConfig, encrypt, wipes bool, l *Listener) (*pageFile, error) {
	g, err := newGuard(index, c.Max, encrypt)
	if err != nil {
		return nil, err
	}
	p := &pageFile{index: index, name: c.Name, priority: c.Priority, store: c.Store, min: min(c.Min, c.Max), max: c.Max, guard: g,
		wipes: wipes, listener: l}
	if _, err := p.grow(p.min); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return p, nil
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

// canGrow says whether the file may have more slots than there are: its disk is asked again, even if it had none lately.
func (p *pageFile) canGrow() bool {
	most := p.max
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size < most && !p.closing
}

// hasFree says whether there is a slot to be had.
func (p *pageFile) hasFree() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closing && p.count+p.towipe < p.size
}

// grow extends the file by at least n slots if it can, and says by how many: chunks that are away come back first.
// Preconditions: no other grow or giveBack is under way.
func (p *pageFile) grow(n uint64) (by uint64, err error) {
	for by < n && err == nil {
		first, slots := p.nextAway((n - by + chunkSlots - 1) / chunkSlots)
		if slots == 0 {
			break
		}
		if err = p.store.Reserve(first, slots); err == nil {
			p.bringBack(first, slots)
			by += slots
		}
	}
	if by < n && err == nil {
		var more uint64
		more, err = p.extend(n - by)
		by += more
	}
	if err != nil {
		p.listener.storeError(p.name, "grow", p.laidOut(), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.stuck = time.Now()
	} else if by > 0 {
		p.stuck = time.Time{}
	}
	return by, err
}

// extend lays out up to n slots behind the last one.
func (p *pageFile) extend(n uint64) (uint64, error) {
	p.mu.Lock()
	top := p.top
	p.mu.Unlock()
	want := min(p.max, top+n)
	if want == top {
		return 0, nil
	}
	if err := p.store.Grow(want); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.top = want
	p.size += want - top
	for uint64(len(p.used))*64 < want {
		p.used = append(p.used, 0)
		if p.wipes {
			p.wiping = append(p.wiping, 0)
		}
	}
	for uint64(len(p.away))*chunkSlots < want {
		p.away = append(p.away, false)
	}
	return want - top, nil
}

// nextAway finds the first run of at most n chunks that are away, and returns it in slots; 0 slots if there is none.
func (p *pageFile) nextAway(n uint64) (first, slots uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.away, true)
	if i < 0 {
		return 0, 0
	}
	for slots/chunkSlots < n && uint64(i)+slots/chunkSlots < uint64(len(p.away)) && p.away[uint64(i)+slots/chunkSlots] {
		slots += chunkSlots
	}
	return uint64(i) * chunkSlots, slots
}

// bringBack makes the slots of chunks that were away free.
func (p *pageFile) bringBack(first, slots uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := first / chunkSlots; c < (first+slots)/chunkSlots; c++ {
		p.away[c] = false
	}
	clear(p.used[first/64 : (first+slots)/64])
	p.size += slots
}

// surplus is how many slots the disk may have back: a file that is used keeps some to go on with, and one that nobody has
// used for two looks keeps its minimum.
func (p *pageFile) surplus() uint64 {
	least := p.min
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := p.count + p.towipe
	if idle := keep == 0; !idle || !p.idle {
		keep += max(growStep, keep/8)
		p.idle = idle
	}
	keep = max(keep, least)
	return p.size - min(p.size, keep)
}

// sendAway takes up to n free slots out of use, in whole chunks from the end. It returns the runs; their space is the
// caller's to give back to the disk.
func (p *pageFile) sendAway(n uint64) (runs []slotRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := p.top / chunkSlots; c > 0 && n >= chunkSlots; c-- {
		first := (c - 1) * chunkSlots
		if p.away[c-1] || !isClear(p.used[first/64:][:chunkSlots/64]) {
			continue
		}
		for i := range p.used[first/64:][:chunkSlots/64] {
			p.used[first/64+uint64(i)] = ^uint64(0)
		}
		p.away[c-1] = true
		p.size -= chunkSlots
		n -= chunkSlots
		if k := len(runs); k > 0 && runs[k-1].first == first+chunkSlots {
			runs[k-1].first, runs[k-1].n = first, runs[k-1].n+chunkSlots
		} else {
			runs = append(runs, slotRun{first, chunkSlots})
		}
	}
	return runs
}

func isClear(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return false
		}
	}
	return true
}

// slotRun is consecutive slots.
type slotRun struct{ first, n uint64 }

// alloc takes up to n consecutive free slots, as many as it finds together without searching long. got is 0 if there
// is none.
func (p *pageFile) alloc(n uint64) (slot, got uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing || p.count+p.towipe == p.size {
		return 0, 0
	}
	slot, got = p.findLocked(p.hint, p.top, n)
	if got < n {
		if s, g := p.findLocked(0, min(p.hint, p.top), n); g > got {
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
func (p *pageFile) skipLocked(i, to uint64, same uint64) uint64 { return skip(p.used, i, to, same) }

func skip(bitmap []uint64, i, to uint64, same uint64) uint64 {
	for i < to {
		w := (bitmap[i/64] ^ same) >> (i % 64)
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
	if !p.isUsedLocked(slot) {
		panic(fmt.Sprintf("mm: page file %s: slot %d freed twice", p.name, slot))
	}
	p.count--
	if p.wipes {
		p.wiping[slot/64] |= 1 << (slot % 64)
		p.towipe++
		p.freed()
		return
	}
	p.used[slot/64] &^= 1 << (slot % 64)
}

// wipe overwrites up to n slots that were freed, consecutive ones at once, and hands them out again from then on. It
// returns how many. While another caller is at it there is nothing to do.
func (p *pageFile) wipe(n uint64, zeros []byte) (wiped uint64) {
	for wiped < n {
		run := p.nextToWipe(min(n-wiped, clusterPages))
		if run.n == 0 {
			break
		}
		bufs := make([][]byte, run.n)
		for i := range bufs {
			bufs[i] = zeros
		}
		if err := p.store.WriteSlots(run.first, bufs); err != nil {
			// It cannot be overwritten: the disk is told to forget it, and the slots go on.
			p.listener.storeError(p.name, "wipe", run.first, err)
			_ = p.store.Discard(run.first, run.n)
			_ = p.store.Reserve(run.first, run.n)
		}
		p.endWipe(run)
		wiped += run.n
	}
	return wiped
}

// nextToWipe finds a run of slots to be overwritten.
func (p *pageFile) nextToWipe(n uint64) slotRun {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.towipe == 0 || p.wipesNow {
		return slotRun{}
	}
	p.wipesNow = true
	first := skip(p.wiping, p.wipeHint, p.top, 0)
	if first >= p.top {
		first = skip(p.wiping, 0, p.top, 0)
	}
	end := skip(p.wiping, first, min(p.top, first+n), ^uint64(0))
	p.wipeHint = end
	return slotRun{first, end - first}
}

func (p *pageFile) endWipe(run slotRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := run.first; i < run.first+run.n; i++ {
		p.wiping[i/64] &^= 1 << (i % 64)
		p.used[i/64] &^= 1 << (i % 64)
	}
	p.towipe -= run.n
	p.wipesNow = false
}

func (p *pageFile) info() PageFileInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PageFileInfo{Number: p.index, Name: p.name, Priority: p.priority, Size: p.size, Max: p.max, Min: p.min, Used: p.count,
		Peak: p.peak, Wiping: p.towipe, Removing: p.closing}
}

// laidOut is how many slots there are records of.
func (p *pageFile) laidOut() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.top
}

// setClosing says whether slots are handed out no more.
func (p *pageFile) setClosing(closing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = closing
}

// empty says whether the file holds nothing any more, not even something to be wiped.
func (p *pageFile) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count == 0 && p.towipe == 0
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
	return p.isUsedLocked(slot)
}

// +checklocks:p.mu
func (p *pageFile) isUsedLocked(slot uint64) bool {
	bit := uint64(1) << (slot % 64)
	return slot < p.top && p.used[slot/64]&bit != 0 && !p.away[slot/chunkSlots] && (!p.wipes || p.wiping[slot/64]&bit == 0)
}
