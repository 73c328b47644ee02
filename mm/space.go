package mm

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"memfs/mm/pfn"
)

// Space is the private memory of one process: a segment whose pages are numbered as the process numbers them (virtual
// address >> PageShift) and that nobody else maps. Everything that holds of a file's pages holds of these: Standby and
// Modified, page files, read-ahead, commit, Check. What differs: a valid word is a page in the process's working set; only
// committed pages can be touched; a first touch takes a frame even if it only reads; and pages can be locked.
//
// Which addresses are reserved and how they are protected is the process's business. All page ranges are inclusive. The
// methods may be called at once from several goroutines and wait for store I/O only.
type Space struct {
	seg *Segment

	low  atomic.Uint64 // pages that trimming for others leaves, if it can
	firm atomic.Bool   // low holds whatever happens
	soft atomic.Uint64 // pages beyond which it is the first to give when frames are short; 0 = none
	high atomic.Uint64 // pages that the working set may hold; 0 = as many as there are frames
	hand atomic.Uint64 // view that trimming goes on from: pages leave round-robin by address

	locked uint64 // pages; PFN lock

	trimmed atomic.Pointer[func(base, mask uint64)] // see OnTrim
}

// NewSpace makes an empty private memory.
func (s *System) NewSpace() *Space {
	g := s.NewSegment(nil)
	g.private = true
	p := &Space{seg: g}
	g.space = p
	s.pfn.Lock()
	s.rec.workingSets[g.id] = &workingSet{}
	s.pfn.Unlock()
	s.segMu.Lock()
	defer s.segMu.Unlock()
	s.spaces = append(s.spaces, p)
	return p
}

// Delete gives everything back at once: frames, slots and commit. Later calls fail with StatusDeleted.
func (p *Space) Delete() {
	s := p.seg.sys
	s.segMu.Lock()
	if i := slices.Index(s.spaces, p); i >= 0 {
		s.spaces = slices.Delete(s.spaces, i, i+1)
	}
	s.segMu.Unlock()
	p.seg.Delete()
	s.pfn.Lock()
	delete(s.rec.workingSets, p.seg.id)
	s.pfn.Unlock()
}

// Commit promises space for pages that are not committed yet; the others stay as they are. StatusCommitmentLimit: nothing
// can be promised; of the range, some pages may be committed then, and are the caller's to decommit.
func (p *Space) Commit(first, last uint64) error { return p.seg.Commit(first, last) }

// Decommit gives frames, slots and commit of the pages back at once. Locked pages are unlocked.
func (p *Space) Decommit(first, last uint64) { p.seg.Punch(first, last) }

// Committed is the number of committed pages.
func (p *Space) Committed() uint64 { return p.seg.Pages() }

// SetLimits bounds the working set, in pages. low is what trimming for others leaves, if it can; high, unless 0, is never
// exceeded for longer than one access takes.
func (p *Space) SetLimits(low, high uint64) {
	p.SetBounds(WorkingSetBounds{Min: low, Max: high, HardMax: high > 0})
}

// WorkingSetBounds bound a working set, in pages (Win32 SetProcessWorkingSetSizeEx).
type WorkingSetBounds struct {
	Min, Max uint64
	HardMin  bool // want of frames does not take it below its minimum; else only as long as others have more
	HardMax  bool // it never exceeds its maximum for longer than one access takes; else only while frames are plenty
}

// SetBounds bounds the working set.
func (p *Space) SetBounds(b WorkingSetBounds) {
	low, high := b.Min, b.Max
	if !b.HardMax {
		high = 0
	}
	p.soft.Store(b.Max)
	p.firm.Store(b.HardMin)
	p.low.Store(low)
	p.high.Store(high)
}

// workingSet is what is known of a working set. The PFN lock guards it.
type workingSet struct {
	now, peak uint64 // pages
	faults    uint64 // pages that entered it
}

// Resident is the number of pages in the working set.
func (p *Space) Resident() uint64 {
	now, _, _ := p.WorkingSet()
	return now
}

// WorkingSet is the number of pages in the working set, the most there have been, and how often one entered it: the page
// faults of the process.
func (p *Space) WorkingSet() (now, peak, faults uint64) {
	s := p.seg.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if r := s.rec.workingSets[p.seg.id]; r != nil {
		return r.now, r.peak, r.faults
	}
	return 0, 0, 0
}

// Locked is the number of locked pages.
func (p *Space) Locked() uint64 {
	p.seg.sys.pfn.Lock()
	defer p.seg.sys.pfn.Unlock()
	return p.locked
}

// accessPages is how many pages one access holds pinned at a time, so that it takes no more than a share of a small
// machine's frames.
func (s *System) accessPages() int {
	return int(min(ViewPages, max(1, s.Budget().Frames/16)))
}

// chunk is how many of the next n bytes at addr are done at a time: whole pages, within one view.
func (s *System) chunk(addr uint64, n int) int {
	const view = ViewPages * PageSize
	return min(n, s.accessPages()*PageSize-int(addr%PageSize), view-int(addr%view))
}

// Read copies the bytes at virtual address addr into buf. StatusNotCommitted: a page is not committed, and buf is in part
// overwritten. StatusInPageError: a page's copy cannot be read.
func (p *Space) Read(addr uint64, buf []byte) error { return p.seg.sys.load(addr, buf, p.fault) }

// faulter brings pages, of one view at most, into a working set and pins them.
type faulter func(first, last uint64) (*ReadSet, error)

// load copies the bytes at virtual address addr into buf, a request's worth of pages at a time.
func (s *System) load(addr uint64, buf []byte, fault faulter) error {
	for len(buf) > 0 {
		n := s.chunk(addr, len(buf))
		set, err := fault(addr>>PageShift, (addr+uint64(n)-1)>>PageShift)
		if err != nil {
			return err
		}
		set.skip(int(addr % PageSize))
		b := buf[:n]
		for _, piece := range set.slices {
			b = b[copy(b, piece):]
		}
		set.Done()
		addr, buf = addr+uint64(n), buf[n:]
	}
	return nil
}

// Touch brings pages into the working set, as reading a byte of each would.
func (p *Space) Touch(first, last uint64) error { return p.seg.sys.touch(first, last, p.fault) }

func (s *System) touch(first, last uint64, fault faulter) error {
	for {
		end := min(last, first+uint64(s.accessPages())-1, first|(ViewPages-1))
		set, err := fault(first, end)
		if err != nil {
			return err
		}
		set.Done()
		if end == last {
			return nil
		}
		first = end + 1
	}
}

// fault makes pages of one view valid and pins them; those for which no frame is left are in buffers.
func (p *Space) fault(first, last uint64) (*ReadSet, error) {
	p.relieve(last - first + 1)
	r := reading{g: p.seg, first: first, last: last, demand: true, sharing: true, set: p.seg.newReadSet(last - first + 1)}
	if err := r.do(false); err != nil {
		r.set.Done()
		return nil, err
	}
	r.set.size = len(r.set.slices) * PageSize
	return r.set, nil
}

// Write copies data to virtual address addr. StatusNotCommitted: a page is not committed; data before it may have been
// written. StatusInPageError, StatusOutPageError: a page could not be read or written.
func (p *Space) Write(addr uint64, data []byte) error {
	for len(data) > 0 {
		n := p.seg.sys.chunk(addr, len(data))
		first, last := addr>>PageShift, (addr+uint64(n)-1)>>PageShift
		p.relieve(last - first + 1)
		p.keep(first, last)
		if err := p.seg.writeView(int64(addr), data[:n], false); err != nil { // what can be written is committed
			return err
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

// Prefetch reads paged pages back onto Standby as far as frames are free; pages that are in frames, or nowhere, are let
// be. It returns how many pages it brought in.
func (p *Space) Prefetch(first, last uint64) (uint64, error) {
	var n uint64
	for key, ok := p.view(first>>viewShift, last); ok; key, ok = p.view(key+1, last) {
		lo, hi := within(key, first, last)
		for i := lo; i <= hi; i++ {
			in, err := p.prefetchPage(key<<viewShift + uint64(i))
			if err != nil {
				return n, err
			}
			n += in
		}
	}
	return n, nil
}

func (p *Space) prefetchPage(page uint64) (uint64, error) {
	g, s := p.seg, p.seg.sys
	s.pfn.Lock()
	short := s.pfn.Available() <= s.lowFrames()
	s.pfn.Unlock()
	if short || !g.isPaged(page) {
		return 0, nil
	}
	before := s.n.pagesInput.Load()
	set, err := p.fault(page, page)
	if err == StatusNotCommitted {
		return 0, nil // decommitted meanwhile
	}
	if err != nil {
		return 0, err
	}
	set.Done()
	p.Trim(page, page)
	return s.n.pagesInput.Load() - before, nil
}

// view finds the first view with records at or after key that holds a page up to last.
func (p *Space) view(key, last uint64) (uint64, bool) {
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	k, id := p.seg.nextLeaf(key)
	return k, id != 0 && k <= last>>viewShift
}

// Page describes one page. A page of which nothing is known is StateZero.
func (p *Space) Page(page uint64) PageInfo {
	info := PageInfo{Index: page, State: StateZero, Frame: -1, PageFile: -1, Slot: -1}
	p.Each(page, 1, func(i PageInfo) bool { info = i; return false })
	return info
}

// Each calls f for the committed pages in [first, first+n), in order, until f returns false, with no lock held.
func (p *Space) Each(first, n uint64, f func(PageInfo) bool) { p.seg.Each(first, n, f) }

// --- what differs from a file's pages ----------------------------------------------------------------------------------

// allCommitted says whether the pages first..last of the leaf's view are committed; id may be 0.
// +checklocks:g.mu
func (g *Segment) allCommitted(id uint32, first, last uint64) bool {
	if id == 0 {
		return false
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	for p := first; p <= last; p++ {
		if !s.rec.word(l, uint(p%ViewPages)).isCommitted() {
			return false
		}
	}
	return true
}

// demandZero gives a committed page that was never written its frame, pinned. It is born dirty, for no store has its zeros.
// Without a frame, or if the page was reset and dropped, which reading must not hide, it returns the page of zeros that all
// share. The PFN lock is held.
// +checklocks:g.mu
// +checklocks:g.sys.pfn.mu
func (g *Segment) demandZero(id uint32, l *leaf, i uint) ([]byte, pfn.Frame) {
	s := g.sys
	if g.private && l.reset()>>i&1 != 0 {
		return s.zeroPage, 0
	}
	f, zeroed := s.alloc(makeOwner(id, i), 0, true)
	if f == 0 {
		return s.zeroPage, 0
	}
	b := s.pfn.Bytes(f)
	if !zeroed {
		clear(b)
	}
	s.pfn.SetPriority(f, g.rule.Priority)
	s.rec.set(l, i, validPTE(f))
	s.rec.access(l, i)
	s.pfn.MakeValid(f)
	s.pfn.SetDirty(f)
	if g.rule.resident() {
		_ = s.pfn.Keep(f, g.rule.Pinned) // dirty: no store has it
	}
	s.n.demandZeroFaults.Add(1)
	s.n.pageFaults.Add(1)
	g.faults.demandZero.Add(1)
	return b, f
}

// count keeps the numbers of valid words of a private segment, and of frames of a limited file, when a word changes.
func (r *records) count(l *leaf, was, is pte) {
	if l.flags&leafLimited != 0 {
		if n := r.limits[l.seg]; n != nil {
			n.count(was, is)
		}
		return
	}
	n := r.workingSets[l.seg]
	switch before, after := was.inWorkingSet(), is.inWorkingSet(); {
	case !before && after:
		n.now++
		n.peak = max(n.peak, n.now)
		n.faults++
	case before && !after:
		n.now--
	}
}

// reset is the pages of a private leaf whose contents may be dropped. It is on no queue: its links hold the bits.
func (l *leaf) reset() uint64 { return uint64(l.next)<<32 | uint64(l.prev) }

func (l *leaf) setReset(mask uint64) { l.next, l.prev = uint32(mask>>32), uint32(mask) }

// --- contents that may be dropped --------------------------------------------------------------------------------------

// Reset says that the contents of the pages are worth nothing until they are written again (MEM_RESET): they are not
// written to a page file. Those that are in the working set stay until they leave it; the others are zeros at once.
func (p *Space) Reset(first, last uint64) {
	p.settled(first, last, func(l *leaf, mask uint64) {
		s := p.seg.sys
		for m := mask; m != 0; {
			i := lowestBit(&m)
			w := s.rec.word(l, i)
			if k := s.plain(w).kind(); k == kindZero || k == kindShared { // what others see is not to be dropped
				continue
			}
			l.setReset(l.reset() | 1<<i)
			if !w.inWorkingSet() {
				s.drop(l, i)
			}
		}
	})
}

// UndoReset takes Reset back. It says whether every page still has its contents; those that have not are zeros.
func (p *Space) UndoReset(first, last uint64) (intact bool) {
	intact = true
	p.seg.eachView(first, last, func(l *leaf, mask uint64) {
		for m := mask & l.reset(); m != 0; {
			if w := p.seg.sys.rec.word(l, lowestBit(&m)); !w.hasFrame() && !w.inWorkingSet() {
				intact = false
			}
		}
		l.setReset(l.reset() &^ mask)
	})
	return intact
}

// Discard makes the pages zeros at once; they stay committed. Locked pages are unlocked.
func (p *Space) Discard(first, last uint64) {
	p.settled(first, last, func(l *leaf, mask uint64) {
		s := p.seg.sys
		s.unlockPages(l, mask)
		l.setReset(l.reset() &^ mask)
		for mask != 0 {
			i := lowestBit(&mask)
			if k := s.plain(s.rec.word(l, i)).kind(); k != kindZero && k != kindShared {
				s.drop(l, i)
			}
		}
	})
}

// settled is eachView that lets I/O on the pages end first. A view is done as a whole.
func (p *Space) settled(first, last uint64, f func(l *leaf, mask uint64)) {
	for key, ok := p.view(first>>viewShift, last); ok; key, ok = p.view(key+1, last) {
		lo, hi := within(key, first, last)
		for {
			wait := p.settleView(key, pageMask(lo, hi), f)
			if wait == nil {
				break
			}
			<-wait.done
		}
	}
}

func (p *Space) settleView(key, mask uint64, f func(l *leaf, mask uint64)) *pageIO {
	g, s := p.seg, p.seg.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	id := g.leafAt(key)
	if id == 0 {
		return nil
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	for m := mask; m != 0; {
		if i := lowestBit(&m); s.rec.word(l, i).kind() == kindInIO {
			return g.ioOn(l.base + uint64(i))
		}
	}
	f(l, mask)
	return nil
}

// drop makes a page zeros: its frame and slot go back, its commit stays. The PFN lock is held: it is called
// from closures that run under it, which the analyser cannot see.
//
// +checklocksignore
func (s *System) drop(l *leaf, i uint) {
	switch w := s.unmapCombined(l, i); {
	case w.hasFrame():
		s.freeLocation(location(s.pfn.Release(w.frame())))
		s.n.pagesFreed.Add(1)
	case w.kind() == kindCombined:
		s.dropCombined(w.number())
	default:
		s.freeLocation(w.location())
	}
	s.rec.set(l, i, committed)
}

// keep notes that pages are about to be written: their contents are worth something again.
func (p *Space) keep(first, last uint64) {
	p.seg.eachView(first, last, func(l *leaf, mask uint64) { l.setReset(l.reset() &^ mask) })
}

// --- locked pages ------------------------------------------------------------------------------------------------------

// Lock brings pages into the working set and keeps them there. Locks do not nest. StatusWorkingSetQuota: more than most
// pages would be locked. StatusNoFrames: so many frames cannot be given away. Nothing has been locked then.
func (p *Space) Lock(first, last, most uint64) error { return p.lockRange(first, last, most, p.Touch) }

// lockRange is Lock of pages that touch brings in.
func (p *Space) lockRange(first, last, most uint64, touch func(first, last uint64) error) error {
	s := p.seg.sys
	var fresh uint64
	p.seg.eachView(first, last, func(l *leaf, mask uint64) { fresh += uint64(bits.OnesCount64(mask &^ l.host)) })
	s.pfn.Lock()
	mine, all, frames := p.locked+fresh, s.locked+fresh, s.budget.Frames
	s.pfn.Unlock()
	if mine > most {
		return StatusWorkingSetQuota
	}
	if all > frames/2 {
		return StatusNoFrames
	}
	var done []uint64
	for page := first; page <= last; page++ {
		was, err := p.lockPage(page, most, touch)
		if err != nil {
			for _, page := range done {
				p.Unlock(page, page)
			}
			return err
		}
		if !was {
			done = append(done, page)
		}
	}
	return nil
}

// lockPage locks one page, and says whether it was locked.
func (p *Space) lockPage(page, most uint64, touch func(first, last uint64) error) (was bool, err error) {
	for range 100 {
		// What is locked has a frame of its own, so that a store to it needs none.
		if err := p.seg.uncombine(page); err != nil && err != errNoSlot {
			return false, err
		}
		if err := touch(page, page); err != nil {
			return false, err
		}
		locked, full := false, false
		p.seg.eachView(page, page, func(l *leaf, mask uint64) {
			s := p.seg.sys
			w := s.rec.word(l, uint(page%ViewPages))
			if !w.inWorkingSet() || s.plain(w).kind() == kindCombined {
				return
			}
			locked = true
			if was = l.host&mask != 0; was {
				return
			}
			if full = p.locked >= most || s.locked >= s.budget.Frames/2; !full {
				p.lock(l, mask, s.frameOf(w))
			}
		})
		switch {
		case full:
			return false, StatusWorkingSetQuota // somebody else was faster
		case locked:
			return was, nil
		}
		time.Sleep(time.Millisecond) // no frame was left: somebody's page-out has to end first
	}
	return false, StatusNoFrames
}

// lock locks a page in the working set. The PFN lock is held.
//
// +checklocksignore
func (p *Space) lock(l *leaf, mask uint64, f pfn.Frame) {
	s := p.seg.sys
	s.pfn.Pin(f)
	l.host |= mask
	l.setReset(l.reset() &^ mask)
	p.locked++
	s.locked++
}

// Unlock unlocks pages. It says whether all of them were locked; those that were not leave the working set.
func (p *Space) Unlock(first, last uint64) (all bool) {
	var n uint64
	s := p.seg.sys
	p.seg.eachView(first, last, func(l *leaf, mask uint64) {
		n += uint64(bits.OnesCount64(l.host & mask))
		p.trimLeaf(l, mask&^l.host)
		s.unlockPages(l, mask)
	})
	return n == last-first+1
}

// UnlockAll unlocks pages; those that were not locked are let be.
func (p *Space) UnlockAll(first, last uint64) {
	p.seg.eachView(first, last, func(l *leaf, mask uint64) { p.seg.sys.unlockPages(l, mask) })
}

// unlockPages unlocks those pages of mask that are locked. The PFN lock is held: it is called
// from closures that run under it, which the analyser cannot see.
//
// +checklocksignore
func (s *System) unlockPages(l *leaf, mask uint64) {
	mask &= l.host
	if mask == 0 {
		return
	}
	n := uint64(bits.OnesCount64(mask))
	l.host &^= mask
	s.locked -= n
	if p := s.space(l.seg); p != nil {
		p.locked -= n
	}
	for mask != 0 {
		s.pfn.Unpin(s.frameOf(s.rec.word(l, lowestBit(&mask))))
	}
}

// space finds the living space with a segment.
func (s *System) space(seg uint32) *Space {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	for _, p := range s.spaces {
		if p.seg.id == seg {
			return p
		}
	}
	return nil
}

// --- trimming ----------------------------------------------------------------------------------------------------------

// Trim takes pages out of the working set, save locked ones and those in use at the moment. It returns how many left.
func (p *Space) Trim(first, last uint64) (n uint64) {
	p.seg.eachView(first, last, func(l *leaf, mask uint64) { n += p.trimLeaf(l, mask) })
	return n
}

// Empty is Trim of everything (EmptyWorkingSet).
func (p *Space) Empty() uint64 { return p.Trim(0, MaxSize>>PageShift) }

// trimLeaf takes pages of mask that are neither locked nor pinned out of the working set; pages that were reset are
// dropped. The PFN lock is held: it is called
// from closures that run under it, which the analyser cannot see.
//
// +checklocksignore
func (p *Space) trimLeaf(l *leaf, mask uint64) (n uint64) {
	s := p.seg.sys
	leave, gone := uint64(0), uint64(0)
	for m := mask &^ l.host; m != 0; {
		i := lowestBit(&m)
		w := s.rec.word(l, i)
		if w.kind() == kindShared {
			s.unshare(l, i)
			n++
			if s.rec.word(l, i).kind() == kindCombined { // a page of the process's own
				gone |= 1 << i
				if l.reset()>>i&1 != 0 {
					s.drop(l, i)
				}
			}
			continue
		}
		if w.kind() != kindValid || s.pfn.Info(w.frame()).Refs > 0 {
			continue
		}
		n++
		if l.reset()>>i&1 != 0 {
			s.drop(l, i)
			gone |= 1 << i
		} else {
			leave |= 1 << i
		}
	}
	s.trimPages(l, leave)
	if f := p.trimmed.Load(); f != nil && leave|gone != 0 {
		(*f)(l.base, leave|gone)
	}
	return n
}

// trimSome takes n pages out of the working set, if it has so many that are not locked: those first that have not been
// accessed for longest, as far as a hand that goes round can tell (clock, second chance). It returns how many left.
func (p *Space) trimSome(n uint64) (moved uint64) {
	for rounds := 0; moved < n && rounds < 3; {
		key, ok := p.view(p.hand.Load(), MaxSize>>PageShift)
		if !ok {
			rounds++
			p.hand.Store(0)
			continue
		}
		whole := true
		p.seg.eachView(key<<viewShift, key<<viewShift+ViewPages-1, func(l *leaf, mask uint64) {
			var idle uint64
			idle, whole = p.idlePages(l, mask, n-moved)
			moved += p.trimLeaf(l, idle)
		})
		if whole {
			p.hand.Store(key + 1)
		}
	}
	return moved
}

// idlePages finds up to most pages of mask in the working set that were not accessed since they were last looked at. Those
// that were have a second chance. whole is false if it stopped before it had looked at all. The PFN lock is held: it is
// called from closures that run under it, which the analyser cannot see.
//
// +checklocksignore
func (p *Space) idlePages(l *leaf, mask, most uint64) (idle uint64, whole bool) {
	words := p.seg.sys.rec.slice(l)
	for n := uint64(0); mask != 0; {
		i := lowestBit(&mask)
		switch {
		case i >= uint(len(words)) || !words[i].inWorkingSet() || l.host>>i&1 != 0:
		case words[i]&accessed != 0:
			words[i] &^= accessed
		case n == most:
			return idle, false
		default:
			idle |= 1 << i
			n++
		}
	}
	return idle, true
}

// access notes that page i of a leaf of a process's memory, which is in the working set, is accessed. The PFN lock is held.
func (r *records) access(l *leaf, i uint) {
	if l.flags&leafPrivate != 0 && r.word(l, i).inWorkingSet() {
		r.slice(l)[i] |= accessed
	}
}

// relieve makes room before n pages are touched: the working set is kept below its limit, and frames are made available at
// the cost of all processes. Where nothing else helps the faulting process writes pages out itself. No lock may be held.
func (p *Space) relieve(n uint64) {
	s := p.seg.sys
	s.pfn.Lock()
	available, low := s.pfn.Available(), s.lowFrames()
	s.pfn.Unlock()
	resident := p.Resident()
	if high := p.high.Load(); high > 0 && resident+n > high {
		p.trimSome(resident + n - high)
	}
	if available >= n+low {
		return
	}
	s.balanceSpaces()
	s.writer.kick()
	if available < n+low/2 && s.slotsFree() {
		_, _ = s.writeCluster(0) // an error is told by the writer; the page then goes straight to a slot, or fails there
	}
}

// inTurn lists the spaces, each time beginning with the next one.
func (s *System) inTurn() []*Space {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	if len(s.spaces) == 0 {
		return nil
	}
	s.spaceTurn = (s.spaceTurn + 1) % len(s.spaces)
	return slices.Concat(s.spaces[s.spaceTurn:], s.spaces[:s.spaceTurn])
}

// --- proof -------------------------------------------------------------------------------------------------------------

// checkPrivate counts what a private leaf holds, and sees that its locked pages are valid and held.
// +checklocks:s.pfn.mu
func (s *System) checkPrivate(c *checking, id uint32, l *leaf) {
	for i, w := range s.rec.slice(l) {
		if w.inWorkingSet() {
			c.resident[l.seg]++
		}
		if l.host>>i&1 == 0 {
			continue
		}
		c.locked++
		if !w.inWorkingSet() || s.pfn.Info(s.frameOf(w)).Refs == 0 {
			c.bad("leaf %d page %d: locked, but not held in the working set", id, i)
		}
		if s.plain(w).kind() == kindCombined {
			c.bad("leaf %d page %d: locked, but shares its frame", id, i)
		}
	}
}

// checkSpaces compares what the leaves hold with the books.
// +checklocks:s.pfn.mu
func (s *System) checkSpaces(c *checking) {
	if c.locked != s.locked {
		c.bad("%d pages are locked, counted %d", c.locked, s.locked)
	}
	for seg, n := range s.rec.workingSets {
		if c.resident[seg] != n.now {
			c.bad("process memory %d: %d pages in its working set, counted %d", seg, c.resident[seg], n.now)
		}
	}
	for seg := range c.resident {
		if s.rec.workingSets[seg] == nil {
			c.bad("process memory %d: pages in the working set of a space that is gone", seg)
		}
	}
}
