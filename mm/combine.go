package mm

import (
	"bytes"
	"cmp"
	"errors"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"memfs/mm/offheap"
	"memfs/mm/pfn"
)

// Page combining (Windows Internals 7 ch. 5, "Memory combining"): pages with the same bytes, of files and of processes' own
// memory, share one frame, and one slot. What they share is a page of a segment of its own, whose pages live the life of all
// others: they are trimmed, written out, compressed, read back and moved as any page is. A page that has been combined has a
// PTE that names it (kindCombined). It is nobody's to change: a store gives the page that is stored into a frame of its own
// again (copy on write), and a process that maps the file has its own from the first touch on.
//
// In a process's memory a combined page can be in the working set, as it was before: its PTE is a shared word then, which
// leads to the combined page as it would to a file's. What is in no process's working set waits on Standby or Modified between
// two reads. Combining costs no commit, for every page that shares is charged as before: each can have its own again.
//
// The lock of the combined pages' segment comes after that of any other segment. What the PFN lock guards is here: the
// numbers, and how many share each. A word of that segment that is not in I/O may be cleared under the PFN lock alone,
// when the last page that shared it goes.
type combining struct {
	seg   *Segment // whose pages are the combined ones
	turn  chan struct{}
	mem   []byte
	pages []combinedPage // by number; PFN lock
	top   uint64         // numbers below were used at least once; PFN lock
	free  uint32         // the first free number below top, plus one; PFN lock
	live  uint64         // numbers in use; PFN lock
	refs  uint64         // PTEs that name one; PFN lock
	holds uint64         // of the pages' refs, those of reads and writes under way; PFN lock

	orphans []uint64 // pages that nobody shares any more, but that were in I/O; PFN lock
	emptied bool     // a leaf may be empty; PFN lock
}

// combinedPage says who shares a combined page.
type combinedPage struct {
	leaf uint32 // of its prototype PTE; 0 of a free number
	refs uint32 // PTEs and requests that hold it; of a free number the next one, plus one
}

// combinedBytes is what one number costs.
const combinedBytes = 8

// Combined is what combining came to, in pages.
type Combined struct {
	Scanned uint64 // looked at: pages that are in frames
	Joined  uint64 // share another page's frame from now on
	Freed   uint64 // frames that became free by that
	Slots   uint64 // slots of page files that did
}

// combineTable is how many pages are compared at once, each by 16 bytes; of more, a part at a time.
const combineTable = 1 << 20

// candidate is a page that may be the same as another.
type candidate struct {
	hash uint64
	leaf uint32
	at   uint32
}

const candidateBytes = 16

// newCombining makes the books of combined pages for so many frames at most. They cost address space until they are used.
func (s *System) newCombining(frames uint64) error {
	mem, err := offheap.Map(int(frames*combinedBytes) + PageSize)
	if err != nil {
		return err
	}
	s.combined = combining{mem: mem, pages: offheap.Of[combinedPage](mem)[:frames], turn: make(chan struct{}, 1)}
	s.combined.seg = s.NewSegment(nil)
	s.combined.seg.combined = true
	return nil
}

// closeCombining ends the segment of combined pages, which nobody shares any more.
func (s *System) closeCombining() error {
	s.sweepCombined()
	s.combined.seg.Delete()
	s.pfn.Lock()
	used := s.combined.top
	s.pfn.Unlock()
	s.ReleaseRecord(int(used) * combinedBytes)
	return offheap.Unmap(s.combined.mem)
}

// Combine finds pages that are in frames and hold the same bytes, and has them share one. Pages that must stay in memory, or
// may be lost, and those in use just now, are left alone. One combines at a time: another is StatusBusy. StatusCommitmentLimit:
// there is no memory for its table.
func (s *System) Combine() (Combined, error) {
	var done Combined
	select {
	case s.combined.turn <- struct{}{}:
		defer func() { <-s.combined.turn }()
	default:
		return done, refuse(StatusBusy, "pages are being combined already: try again")
	}
	frames := s.Budget().Frames
	room := int(min(frames, combineTable)) + ViewPages
	if err := s.ChargeRecord(room * candidateBytes); err != nil {
		return done, err
	}
	defer s.ReleaseRecord(room * candidateBytes)
	defer s.sweepCombined()
	whole := make([]candidate, 0, room)
	parts := (frames + combineTable - 1) / combineTable
	for part := range parts {
		table := s.findCandidates(whole, part, parts)
		done.Scanned += uint64(len(table))
		slices.SortFunc(table, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.leaf, b.leaf), cmp.Compare(a.at, b.at))
		})
		for len(table) > 0 {
			n := 1
			for n < len(table) && table[n].hash == table[0].hash {
				n++
			}
			if n > 1 {
				if err := s.combineSame(table[:n], &done); err != nil {
					return done, err
				}
			}
			table = table[n:]
		}
	}
	return done, nil
}

// findCandidates hashes the pages that are in frames, those of one part of all hashes, as far as the table has room.
func (s *System) findCandidates(table []candidate, part, parts uint64) []candidate {
	for id := uint32(1); id <= s.rec.leaves.Top() && len(table)+ViewPages <= cap(table); id++ {
		g, key := s.segmentOf(id)
		if g == nil {
			continue
		}
		table = g.hashView(table, id, key, part, parts)
	}
	return table
}

// segmentOf says whose view a leaf is; nil if nobody's.
func (s *System) segmentOf(id uint32) (*Segment, uint64) {
	s.pfn.Lock()
	l := s.rec.leaves.At(id)
	seg, key := l.seg, l.base>>viewShift
	s.pfn.Unlock()
	if seg == 0 {
		return nil, 0
	}
	return s.segment(seg), key
}

func (g *Segment) hashView(table []candidate, id uint32, key uint64, part, parts uint64) []candidate {
	s := g.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leafAt(key) != id || g.rule.resident() {
		return table
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	for i, w := range s.rec.slice(l) {
		if !s.canCombine(l, uint(i)) {
			continue
		}
		if h := hashPage(s.pfn.Bytes(w.frame())); h%parts == part {
			table = append(table, candidate{h, id, uint32(i)})
		}
	}
	return table
}

// hashPage is the same for pages with the same bytes, and hardly ever for others: the checksums of its halves.
func hashPage(b []byte) uint64 {
	return uint64(crc32.Checksum(b[:PageSize/2], castagnoli))<<32 | uint64(crc32.Checksum(b[PageSize/2:], castagnoli))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// canCombine says whether a page is in a frame that nothing is done with just now, and that no process has mapped of a file.
// The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) canCombine(l *leaf, i uint) bool {
	w := s.rec.word(l, i)
	if !w.hasFrame() || l.flags&leafPrivate != 0 && l.reset()>>i&1 != 0 {
		return false
	}
	f := s.pfn.Info(w.frame())
	return f.Refs == 0 && (f.Shares == 0 || l.flags&leafCombined != 0) && !f.Kept && !f.Offered &&
		(f.State == pfn.Active || f.State == pfn.Standby || f.State == pfn.Modified)
}

// combineSame has pages with one hash share the frame of one of them, if they really hold the same bytes.
func (s *System) combineSame(pages []candidate, done *Combined) error {
	var number uint64
	var first *candidate // the one that shall be shared, as long as it is not
	found, made := false, false
	for i := range pages {
		c := &pages[i]
		if n, ok := s.isCombined(c); ok {
			if !found {
				number, found = n, true
			}
			continue
		}
		if !found && first == nil {
			first = c
			continue
		}
		if !found {
			n, err := s.combineFirst(first)
			if errors.Is(err, errGone) {
				first = c
				continue
			}
			if err != nil {
				return err
			}
			number, found, made = n, true, true
		}
		s.join(c, number, done)
	}
	// A page that was there before, or the first one, is yet to join what was found behind it.
	if found && !made && first != nil {
		s.join(first, number, done)
	}
	if made {
		s.undoShare(first, number)
	}
	return nil
}

// errGone says that a page is not what it was a moment ago.
var errGone = errors.New("mm: the page has changed")

// isCombined says whether a candidate is a combined page itself, and its number.
func (s *System) isCombined(c *candidate) (number uint64, ok bool) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(c.leaf)
	if l.flags&leafCombined == 0 {
		return 0, false
	}
	return l.base + uint64(c.at), true
}

// withPage calls f for a candidate that is in a frame still, with all locks held.
func (s *System) withPage(c *candidate, f func(g *Segment, l *leaf) error) error {
	g, key := s.segmentOf(c.leaf)
	if g == nil || g.combined {
		return errGone
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted || g.leafAt(key) != c.leaf || g.rule.resident() {
		return errGone
	}
	return f(g, s.rec.leaves.At(c.leaf))
}

// combineFirst makes a page's frame a combined page, which it is the first to share. It returns the number.
func (s *System) combineFirst(c *candidate) (number uint64, err error) {
	for {
		err := s.withPage(c, func(_ *Segment, l *leaf) (err error) {
			z := &s.combined
			z.seg.mu.Lock()
			defer z.seg.mu.Unlock()
			if number, err = z.seg.newCombined(); err != nil {
				return err
			}
			return s.handOver(c, l, number)
		})
		if err != errGrow {
			return number, err
		}
		if err := s.commit.grow(1); err != nil {
			return 0, err
		}
	}
}

// newCombined takes a number, and makes the record for its PTE.
// +checklocks:g.mu
func (g *Segment) newCombined() (number uint64, err error) {
	s, z := g.sys, &g.sys.combined
	s.pfn.Lock()
	fresh := z.free == 0
	if fresh {
		number = z.top
	} else {
		number = uint64(z.free - 1)
	}
	s.pfn.Unlock()
	if number >= uint64(len(z.pages)) {
		return 0, StatusCommitmentLimit
	}
	if fresh {
		if err := s.chargeRecord(combinedBytes); err != nil {
			return 0, err
		}
	}
	id, err := g.makeLeaf(number>>viewShift, uint(number%ViewPages)+1)
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if fresh {
		z.top++ // numbers are taken with g.mu held, and only given back without
		z.pages[number].refs, z.free = z.free, uint32(number)+1
	}
	if err != nil {
		return 0, err // the number is free; what was made of the record goes with the next sweep
	}
	z.take(number, id)
	return number, nil
}

// take takes a free number off the list. The PFN lock is held.
func (z *combining) take(number uint64, leaf uint32) {
	p := &z.free
	for *p != uint32(number)+1 {
		p = &z.pages[*p-1].refs
	}
	*p = z.pages[number].refs
	z.pages[number] = combinedPage{leaf: leaf}
	z.live++
}

// giveBack makes a number free. The PFN lock is held.
func (z *combining) giveBack(number uint64) {
	z.pages[number] = combinedPage{refs: z.free}
	z.free = uint32(number) + 1
	z.live--
	z.emptied = true
}

// handOver gives the frame of a page to a combined page that nobody shares yet.
func (s *System) handOver(c *candidate, l *leaf, number uint64) error {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	z, at := &s.combined, uint(c.at)
	if !s.canCombine(l, at) {
		z.giveBack(number)
		return errGone
	}
	w, to := s.rec.word(l, at), makeOwner(z.pages[number].leaf, uint(number%ViewPages))
	s.pfn.SetOwner(w.frame(), uint64(to))
	switch of := s.rec.leaves.At(to.leaf()); {
	case inProcess(l, w): // where it stays in the working set
		s.rec.set(of, to.index(), validPTE(w.frame()))
		s.pfn.Share(w.frame())
		s.rec.set(l, at, sharedPTE(to, true)|w&accessed)
	default:
		if w.kind() == kindValid {
			s.pfn.Trim(w.frame())
		}
		s.rec.set(of, to.index(), transitionPTE(w.frame()))
		s.rec.set(l, at, combinedPTE(number))
	}
	z.pages[number].refs++
	z.refs++
	return nil
}

// inProcess says whether a page with PTE w is in the working set of a process, whose own it is.
func inProcess(l *leaf, w pte) bool { return l.flags&leafPrivate != 0 && w.kind() == kindValid }

// join has a page share a combined one that holds the same bytes.
func (s *System) join(c *candidate, number uint64, done *Combined) {
	_ = s.withPage(c, func(_ *Segment, l *leaf) error {
		s.pfn.Lock()
		defer s.pfn.Unlock()
		z, at := &s.combined, uint(c.at)
		w, with := s.rec.word(l, at), s.combinedWord(number)
		if !s.canCombine(l, at) || !with.hasFrame() || z.pages[number].refs == math.MaxUint32 ||
			!bytes.Equal(s.pfn.Bytes(w.frame()), s.pfn.Bytes(with.frame())) {
			return errGone
		}
		if inProcess(l, w) {
			s.share(l, at, with.frame())
			s.rec.access(l, at)
		} else {
			s.rec.set(l, at, combinedPTE(number))
		}
		if stale := location(s.pfn.Release(w.frame())); stale != 0 {
			s.freeLocation(stale)
			done.Slots++
		}
		z.pages[number].refs++
		z.refs++
		done.Joined++
		done.Freed++
		s.n.pagesCombined.Add(1)
		return nil
	})
}

// undoShare gives a page that nobody has joined its frame back.
func (s *System) undoShare(c *candidate, number uint64) {
	g, _ := s.segmentOf(c.leaf)
	if g == nil {
		return
	}
	priority := g.Rule().Priority
	_ = s.withPage(c, func(_ *Segment, l *leaf) error {
		s.pfn.Lock()
		defer s.pfn.Unlock()
		z := &s.combined
		if w := s.plain(s.rec.word(l, uint(c.at))); z.pages[number].refs == 1 && w == combinedPTE(number) {
			s.takeBackFrame(c, number, priority)
		}
		return nil
	})
}

// takeBackFrame makes the frame of a combined page that one page alone shares that page's own again, if it is in one that
// nothing is done with. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) takeBackFrame(c *candidate, number uint64, priority uint8) {
	z := &s.combined
	of, i := s.rec.leaves.At(z.pages[number].leaf), uint(number%ViewPages)
	if !s.canCombine(of, i) {
		return
	}
	l, at, f := s.rec.leaves.At(c.leaf), uint(c.at), s.rec.word(of, i).frame()
	s.rec.set(of, i, 0)
	s.pfn.SetOwner(f, uint64(makeOwner(c.leaf, at)))
	if w := s.rec.word(l, at); w.kind() == kindShared { // of a process, in its working set
		s.pfn.Unshare(f)
		s.rec.set(l, at, validPTE(f)|w&accessed)
	} else {
		s.rec.set(l, at, transitionPTE(f))
	}
	s.pfn.SetPriority(f, priority)
	z.refs--
	z.giveBack(number)
}

// combinedWord is the PTE of a combined page. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) combinedWord(number uint64) pte {
	return s.rec.word(s.rec.leaves.At(s.combined.pages[number].leaf), uint(number%ViewPages))
}

// dropCombined notes that a PTE names a combined page no more; with the last one it is gone. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) dropCombined(number uint64) {
	s.combined.refs--
	s.unholdCombined(number)
}

// hold keeps a combined page for a request. The PFN lock is held.
func (z *combining) hold(number uint64) {
	z.pages[number].refs++
	z.holds++
}

// release undoes hold. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) releaseCombined(number uint64) {
	s.combined.holds--
	s.unholdCombined(number)
}

// +checklocks:s.pfn.mu
func (s *System) unholdCombined(number uint64) {
	z := &s.combined
	p := &z.pages[number]
	if p.refs--; p.refs > 0 {
		return
	}
	if s.combinedWord(number).kind() == kindInIO {
		z.orphans = append(z.orphans, number) // its slot is not to be freed under the I/O
		s.balancer.kick()
		return
	}
	s.freeCombined(number)
}

// freeCombined frees the frame and slot of a combined page that nobody shares. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) freeCombined(number uint64) {
	z := &s.combined
	l, i := s.rec.leaves.At(z.pages[number].leaf), uint(number%ViewPages)
	switch w := s.rec.word(l, i); {
	case w.hasFrame():
		s.freeLocation(location(s.pfn.Release(w.frame())))
		s.n.pagesFreed.Add(1)
	case w.kind() == kindPaged:
		s.freeLocation(w.location())
	}
	s.rec.set(l, i, 0)
	z.giveBack(number)
}

// sweepCombined frees what could not be freed at once.
func (s *System) sweepCombined() {
	z := &s.combined
	s.pfn.Lock()
	orphans := z.orphans
	z.orphans = nil
	for _, number := range orphans {
		if s.combinedWord(number).kind() == kindInIO {
			z.orphans = append(z.orphans, number)
		} else {
			s.freeCombined(number)
		}
	}
	emptied := z.emptied
	z.emptied = false
	s.pfn.Unlock()
	if !emptied {
		return
	}
	g := z.seg
	for key := uint64(0); ; key++ {
		g.mu.Lock()
		k, id := g.nextLeaf(key)
		if id != 0 {
			g.dropLeafIfEmpty(k)
		}
		g.mu.Unlock()
		if key = k; id == 0 {
			return
		}
	}
}

// pinCombined pins the frame of a combined page for a reader, 0 if it is in none. The page stays in no working set: it
// waits on its list again when the last reader is done. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) pinCombined(number uint64) pfn.Frame {
	l, i := s.rec.leaves.At(s.combined.pages[number].leaf), uint(number%ViewPages)
	w := s.rec.word(l, i)
	if !w.hasFrame() {
		return 0
	}
	f := w.frame()
	s.rec.set(l, i, validPTE(f))
	s.pfn.MakeValid(f)
	s.pfn.Pin(f)
	s.leaveCombined(l, i)
	return f
}

// leaveCombined takes a combined page that was made valid for a reader out of the working set, if no process has it in its own.
// The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) leaveCombined(l *leaf, i uint) {
	w := s.rec.word(l, i)
	if w.kind() != kindValid || s.pfn.Shares(w.frame()) > 0 {
		return
	}
	s.rec.set(l, i, transitionPTE(w.frame()))
	s.pfn.Trim(w.frame())
}

// combinedRead is a combined page that a read wants, and that is in no frame.
type combinedRead struct {
	page   uint64
	number uint64 // held
}

// fetchCombined reads combined pages back for a read of pages that share them.
func (r *reading) fetchCombined() (err error) {
	s := r.g.sys
	for _, c := range r.combined {
		n := reading{g: s.combined.seg, first: c.number, last: c.number, set: s.combined.seg.newReadSet(1), sharing: true}
		n.bounce = func(uint64) []byte { return r.buffer(c.page) }
		e := n.do(false)
		if e == nil && r.maps() {
			r.mapCombined(c, n.set.frames[0])
		}
		s.pfn.Lock()
		s.leaveCombined(s.rec.leaves.At(s.combined.pages[c.number].leaf), uint(c.number%ViewPages))
		s.releaseCombined(c.number)
		s.pfn.Unlock()
		if e != nil {
			n.set.Done()
			err = e
			continue
		}
		at := c.page - r.first
		r.set.frames[at], r.set.slices[at] = n.set.frames[0], n.set.slices[0]
		n.set.frames[0] = 0 // the pin is the reply's now
		n.set.Done()
	}
	r.combined = r.combined[:0]
	return err
}

// passCombined resolves page i of a leaf, which shares a combined one, if that is in a frame; else it is read later. It returns
// the number of soft faults. The PFN lock is held.
// +checklocks:r.g.mu
// +checklocks:r.g.sys.pfn.mu
func (r *reading) passCombined(l *leaf, i uint, number uint64) (soft uint64) {
	s, page := r.g.sys, l.base+uint64(i)
	if !r.sharing {
		r.uncombine = append(r.uncombine, page)
		return 0
	}
	if f := s.pinCombined(number); f != 0 {
		if soft = 1; s.rec.word(l, i).kind() == kindShared {
			soft = 0
		} else if r.maps() {
			s.share(l, i, f)
		}
		s.rec.access(l, i)
		r.set.frames[page-r.first], r.set.slices[page-r.first] = f, s.pfn.Bytes(f)
		return soft
	}
	s.combined.hold(number)
	r.combined = append(r.combined, combinedRead{page, number})
	return 0
}

// maps says whether what is read enters the working set of the process whose memory it is.
func (r *reading) maps() bool { return r.demand && r.g.private }

// mapCombined enters a combined page that has been read back into the working set of the process, unless its page has got
// other bytes meanwhile. The frame is pinned, or 0.
func (r *reading) mapCombined(c combinedRead, f pfn.Frame) {
	g, s := r.g, r.g.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	s.pfn.Lock()
	defer s.pfn.Unlock()
	id, i := g.leafAt(c.page>>viewShift), uint(c.page%ViewPages)
	if id == 0 || f == 0 {
		return
	}
	if l := s.rec.leaves.At(id); s.rec.word(l, i) == combinedPTE(c.number) {
		s.share(l, i, f)
		s.rec.access(l, i)
	}
}

// plain is a PTE of a process that leads to a combined page as one that names it; any other as it is. The PFN lock is held.
func (s *System) plain(w pte) pte {
	if w.kind() != kindShared {
		return w
	}
	return s.shown(w)
}

func (s *System) shown(w pte) pte {
	o := w.owner()
	if l := s.rec.leaves.At(o.leaf()); l.flags&leafCombined != 0 {
		return combinedPTE(l.base + uint64(o.index()))
	}
	return w
}

// unmapCombined takes page i of a leaf out of the working set, if it is there as a combined one. It returns its PTE. The PFN
// lock is held: it is called from closures that run under it, which the analyser cannot see.
//
// +checklocksignore
func (s *System) unmapCombined(l *leaf, i uint) pte {
	if w := s.rec.word(l, i); s.plain(w) != w {
		s.unshare(l, i)
	}
	return s.rec.word(l, i)
}

// isPaged says whether a page is in a store alone.
func (g *Segment) isPaged(page uint64) bool {
	w := g.pteOf(page)
	if w.kind() == kindCombined {
		g.sys.pfn.Lock()
		defer g.sys.pfn.Unlock()
		if n := w.number(); n < g.sys.combined.top && g.sys.combined.pages[n].leaf != 0 {
			w = g.sys.combinedWord(n)
		}
	}
	return w.kind() == kindPaged
}

// copyCombinedPages gives pages that may be stored into frames of their own.
func (r *reading) copyCombinedPages() error {
	deadline := time.Now().Add(patience)
	for _, page := range r.uncombine {
		for {
			err := r.g.uncombine(page)
			if err != errNoSlot {
				if err != nil {
					return err
				}
				break
			}
			if time.Now().After(deadline) {
				return StatusInPageError
			}
			r.g.sys.writer.kick()
			time.Sleep(time.Millisecond)
		}
	}
	r.uncombine = r.uncombine[:0]
	return nil
}

// abandonCombined lets go of combined pages that a read wanted. The PFN lock is held.
// +checklocks:r.g.sys.pfn.mu
func (r *reading) abandonCombined() {
	for _, c := range r.combined {
		r.g.sys.releaseCombined(c.number)
	}
	r.combined = r.combined[:0]
}

// uncombine gives a page that shares a combined one a frame of its own.
func (g *Segment) uncombine(page uint64) error {
	for {
		was := g.versionOf(page)
		if was.kind() != kindCombined {
			return nil
		}
		set, err := g.read(int64(page)<<PageShift, PageSize, alignedPage(), false, false)
		if err != nil {
			return err
		}
		done, err := g.copyCombined(page, was, set.slices[0])
		set.Done()
		if err != nil || done {
			return err
		}
	}
}

// copyCombined copies the bytes of a combined page, which are given, to a frame of the page's own. done is false if the page
// is no longer what it was.
func (g *Segment) copyCombined(page uint64, was version, content []byte) (done bool, err error) {
	s := g.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted {
		return false, StatusDeleted
	}
	id, i := g.leafAt(page>>viewShift), uint(page%ViewPages)
	if id == 0 {
		return false, nil
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	if s.version(l, i) != was {
		return false, nil
	}
	f, _ := s.alloc(makeOwner(id, i), 0, false)
	if f == 0 {
		return false, errNoSlot
	}
	copy(s.pfn.Bytes(f), content)
	s.unmapCombined(l, i)
	s.pfn.SetPriority(f, g.rule.Priority)
	s.rec.set(l, i, transitionPTE(f))
	_ = s.pfn.SetDirty(f)
	s.pfn.Unpin(f)
	s.dropCombined(was.number())
	s.n.writeCopies.Add(1)
	return true, nil
}

// uncombineView gives every page of a view that shares a combined one a frame of its own, as far as frames are to be had.
func (g *Segment) uncombineView(key uint64) error {
	for page := key << viewShift; page < (key+1)<<viewShift; page++ {
		if err := g.uncombine(page); err != nil {
			return err
		}
	}
	return nil
}

// checkSharer notes that a PTE leads to a combined page.
// +checklocks:s.pfn.mu
func (s *System) checkSharer(c *checking, where pageName, number uint64) {
	if number >= s.combined.top || s.combined.pages[number].leaf == 0 {
		c.bad("%v: shares combined page %d, which there is not", where, number)
		return
	}
	c.sharers[number]++
	c.named++
}

// checkCombined compares how many share a combined page with the books.
// +checklocks:s.pfn.mu
func (s *System) checkCombined(c *checking) {
	z := &s.combined
	var live, refs uint64
	for n := range z.top {
		p := &z.pages[n]
		if p.leaf == 0 {
			continue
		}
		live++
		refs += uint64(p.refs)
		if found := c.sharers[n]; found > uint64(p.refs) {
			c.bad("combined page %d: shared by %d pages, counted %d", n, found, p.refs)
		}
		if p.refs > 0 && s.combinedWord(n).kind() == kindZero {
			c.bad("combined page %d: shared by %d pages, but it is nowhere", n, p.refs)
		}
	}
	if live != z.live || refs != z.refs+z.holds || c.named != z.refs {
		c.bad("%d combined pages, counted %d; %d PTEs name one and %d are held, counted %d and %d", live, z.live, c.named,
			refs-min(refs, c.named), z.refs, z.holds)
	}
}
