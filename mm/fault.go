package mm

import (
	"errors"
	"sync"
	"unsafe"

	"memfs/mm/pfn"
)

// ReadSet is the pages that a read was answered with: frames pinned until Done, so that the reply can be sent straight
// from them.
type ReadSet struct {
	sys    *System
	slices [][]byte
	frames []pfn.Frame // pinned; 0 where the bytes are not in a frame
	part   pfn.Part    // of the PFN lock, which they belong to if they are the segment's own
	size   int

	// Soft and Hard are how many of the pages came back from a list, and from a store.
	Soft, Hard uint64

	reading reading // that it is made by, which is over when anybody else has it: one allocation less
}

var readSets = sync.Pool{New: func() any { return new(ReadSet) }}

// Slices are the bytes, in order.
func (r *ReadSet) Slices() [][]byte { return r.slices }

// Size is how many bytes there are.
func (r *ReadSet) Size() int { return r.size }

// Done unpins the frames. The slices must not be used afterwards. It may be called once.
func (r *ReadSet) Done() {
	r.unpin()
	clear(r.slices[:len(r.frames)]) // Clip may have made it shorter
	r.slices, r.frames, r.size = r.slices[:0], r.frames[:0], 0
	r.Soft, r.Hard, r.reading = 0, 0, reading{}
	readSets.Put(r)
}

func (r *ReadSet) unpin() {
	db := r.sys.pfn
	h := db.LockPart(r.part)
	all := db.UnpinPart(r.part, r.frames)
	db.UnlockPart(h)
	if all {
		return
	}
	db.Lock()
	defer db.Unlock()
	for _, f := range r.frames {
		if f != 0 {
			db.Unpin(f)
		}
	}
}

func (g *Segment) newReadSet(pages uint64) *ReadSet {
	r := readSets.Get().(*ReadSet)
	r.sys, r.part = g.sys, partOf(g.id)
	for range pages {
		r.slices = append(r.slices, nil)
		r.frames = append(r.frames, 0)
	}
	return r
}

// run is consecutive pages whose copies lie in consecutive slots: one read of the store.
type run struct {
	first  uint64 // page
	at     location
	frames []pfn.Frame // Transition, one reference each; 0 where none was to be had
	bufs   [][]byte
	io     *pageIO
	errs   []error
}

// reading is one Read under way.
type reading struct {
	g           *Segment
	first, last uint64
	demand      bool // committed pages that were never written get their frames
	set         *ReadSet
	off         int64                    // of the request, whose answer may go to reply
	reply       []byte                   // nil: there is none
	bounce      func(page uint64) []byte // instead of both; nil: there is none
	runs        []run
	cached      bool // a READ into the host's cache before its first pass: the host has no copy of these pages

	sharing   bool // nobody stores into what is read: combined pages need not be copied
	uncombine []uint64
	combined  []combinedRead
}

// Read makes the n > 0 bytes at off valid and returns them. The host will keep the pages: they enter the system cache's
// working set. reply is the buffer of the reply, at least n bytes; pages for which no frame is left are read into it and
// stay paged. It waits for store I/O only. StatusInPageError if a page's copy cannot be read.
func (g *Segment) Read(off int64, n int, reply []byte) (*ReadSet, error) {
	g.sys.pressure.enter(g.id)
	defer g.sys.pressure.leave(g.id)
	g.sys.throttle()
	return g.read(off, n, reply, true, true)
}

// ReadPast is Read for a READ that goes past the host's cache (O_DIRECT): the host may have copies of the pages.
func (g *Segment) ReadPast(off int64, n int, reply []byte) (*ReadSet, error) {
	g.sys.pressure.enter(g.id)
	defer g.sys.pressure.leave(g.id)
	g.sys.throttle()
	return g.read(off, n, reply, true, false)
}

// read is Read as a part of another request. host says that the host will keep the pages, cached that it has none of them.
func (g *Segment) read(off int64, n int, reply []byte, host, cached bool) (*ReadSet, error) {
	first, last := uint64(off)>>PageShift, uint64(off+int64(n)-1)>>PageShift
	set := g.newReadSet(last - first + 1)
	r := &set.reading // zero: Done has seen to it
	r.g, r.first, r.last, r.set, r.cached, r.sharing = g, first, last, set, cached, true
	r.off, r.reply = off, reply[:min(n, len(reply))]
	if err := r.do(host); err != nil {
		r.set.Done()
		return nil, err
	}
	r.set.size = len(r.set.slices) * PageSize
	r.set.skip(int(off % PageSize))
	r.set.Clip(n)
	return r.set, nil
}

// buffer is where a page is read to for which there is no frame: its place in the reply, if that can be used.
func (r *reading) buffer(page uint64) []byte {
	if r.bounce != nil {
		return r.bounce(page)
	}
	at := int64(page)<<PageShift - r.off
	if at >= 0 && at+PageSize <= int64(len(r.reply)) {
		if b := r.reply[at : at+PageSize : at+PageSize]; aligned(b) {
			return b
		}
	}
	return alignedPage()
}

// skip cuts the first n bytes, less than a page, off.
func (r *ReadSet) skip(n int) {
	r.slices[0] = r.slices[0][n:]
	r.size -= n
}

// Clip cuts everything after the first n bytes off.
func (r *ReadSet) Clip(n int) {
	if n >= r.size {
		return
	}
	r.size = n
	for i, b := range r.slices {
		if len(b) >= n {
			r.slices[i] = b[:n]
			r.slices = r.slices[:i+1]
			return
		}
		n -= len(b)
	}
}

func aligned(b []byte) bool { return uintptr(unsafe.Pointer(&b[0]))%PageSize == 0 }

// alignedPage returns a page that direct I/O can use. The allocator aligns objects of this size to it.
func alignedPage() []byte {
	b := make([]byte, PageSize)
	if !aligned(b) {
		b = make([]byte, 2*PageSize)
		b = b[PageSize-int(uintptr(unsafe.Pointer(&b[0]))%PageSize):][:PageSize]
	}
	return b
}

// do resolves every page: passes over those still missing, each followed by the reads it found to be needed, until no
// other fault's I/O is in the way. host says that the host will keep the pages.
func (r *reading) do(host bool) error {
	holes := host // make records of views over holes; without them those are not counted, but served
	for {
		wait, err := r.pass(host, holes)
		if err == errEdited {
			continue
		}
		if err == errGrow {
			if err = r.g.sys.commit.grow(1); err != nil {
				holes = false
			}
			continue
		}
		if err == StatusCommitmentLimit {
			holes = false
			continue
		}
		if err != nil {
			return err
		}
		if err := r.fetch(host); err != nil {
			r.g.sys.pfn.Lock()
			r.abandonCombined()
			r.g.sys.pfn.Unlock()
			return err
		}
		if err := r.fetchCombined(); err != nil {
			return err
		}
		if wait == nil && len(r.uncombine) == 0 {
			return nil
		}
		if err := r.copyCombinedPages(); err != nil {
			return err
		}
		if wait != nil {
			r.g.sys.await(wait)
		}
	}
}

// await waits for I/O of another fault.
func (s *System) await(io *pageIO) {
	s.pressure.stall()
	<-io.done
	s.pressure.resume()
}

// pass resolves the missing pages that need no I/O, marks those that do and gathers them into runs, and returns the first
// foreign I/O that it met.
func (r *reading) pass(host, holes bool) (wait *pageIO, err error) {
	g := r.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted {
		return nil, StatusDeleted
	}
	if r.cached {
		if e, mine := g.meet(r.first, r.last); e != nil {
			r.edited(e, mine)
			return nil, errEdited
		}
	}
	for p := r.first; p <= r.last; {
		end := min(r.last, p|(ViewPages-1))
		key := p >> viewShift
		id := g.leafAt(key)
		if g.private && !g.allCommitted(id, p, end) {
			r.abandon()
			return nil, StatusNotCommitted
		}
		if id == 0 && holes {
			if id, err = g.makeLeaf(key, 0); err != nil {
				r.abandon()
				return nil, err
			}
		}
		if w := r.passView(id, p, end, host); wait == nil {
			wait = w
		}
		p = end + 1
	}
	r.cached = false
	r.readAhead()
	for i := range r.runs {
		n := &r.runs[i]
		n.io = g.beginIO(n.first, n.first+uint64(len(n.frames))-1)
	}
	return wait, nil
}

// errEdited says that a store was applied to pages of the read, and the pass has to begin.
var errEdited = errors.New("mm: pages were edited")

// edited applies a store that the read has met, or waits for it. It gives the segment's lock up meanwhile.
// +checklocks:r.g.mu
func (r *reading) edited(e *edit, mine bool) {
	r.set.unpin() // what a pass that failed half-way has found may change
	clear(r.set.slices)
	clear(r.set.frames)
	r.g.mu.Unlock()
	defer r.g.mu.Lock()
	if mine {
		r.g.run(e, r.first, r.last)
	} else {
		<-e.done
	}
}

// abandon undoes the marking of a pass that failed half-way.
// +checklocks:r.g.mu
func (r *reading) abandon() {
	s := r.g.sys
	s.pfn.Lock()
	for i := range r.runs {
		n := &r.runs[i]
		for j, f := range n.frames {
			r.unmark(n.first+uint64(j), f)
		}
	}
	r.abandonCombined()
	s.pfn.Unlock()
	r.runs, r.uncombine = r.runs[:0], r.uncombine[:0]
}

// unmark makes a page marked inIO paged again and frees its frame, if it has one. The PFN lock is held.
// +checklocks:r.g.mu
// +checklocks:r.g.sys.pfn.mu
func (r *reading) unmark(page uint64, f pfn.Frame) {
	s := r.g.sys
	l := s.rec.leaves.At(r.g.leafAt(page >> viewShift))
	i := uint(page % ViewPages)
	s.rec.set(l, i, s.rec.word(l, i).as(kindPaged))
	if f != 0 {
		s.pfnRelease(f)
	}
	if f != 0 && r.asked(page) {
		r.set.slices[page-r.first] = nil
	}
}

// pfnRelease frees a frame that holds no page yet, whose one reference is ours. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) pfnRelease(f pfn.Frame) {
	s.pfn.Release(f)
	s.pfn.Unpin(f)
}

// passView is pass for the pages p..end of one view.
// +checklocks:r.g.mu
func (r *reading) passView(id uint32, p, end uint64, host bool) (wait *pageIO) {
	g, s := r.g, r.g.sys
	if id == 0 {
		for ; p <= end; p++ {
			r.set.slices[p-r.first] = s.zeroPage
			s.n.holeReads.Add(1)
		}
		return nil
	}
	if r.passPart(id, p, end, host) {
		return nil
	}
	var soft, holes uint64
	l := s.rec.leaves.At(id)
	s.pfn.Lock()
	if host {
		s.mapHost(id, l, pageMask(uint(p%ViewPages), uint(end%ViewPages)))
	}
	for ; p <= end; p++ {
		at := p - r.first
		if r.set.slices[at] != nil {
			continue
		}
		i := uint(p % ViewPages)
		switch w := s.plain(s.rec.word(l, i)); w.kind() {
		case kindZero:
			if r.demand && w.isCommitted() {
				r.set.slices[at], r.set.frames[at] = g.demandZero(id, l, i)
				continue
			}
			r.set.slices[at] = s.zeroPage
			holes++
		case kindValid, kindTransition:
			soft += g.pin(l, i, w)
			r.set.frames[at] = w.frame()
			r.set.slices[at] = s.pfn.Bytes(w.frame())
		case kindInIO:
			s.n.collidedFaults.Add(1)
			if wait == nil {
				wait = g.ioOn(p)
			}
		case kindPaged:
			r.queue(id, l, i, p)
		case kindCombined:
			soft += r.passCombined(l, i, w.number())
		}
	}
	s.pfn.Unlock()
	if holes > 0 {
		s.n.holeReads.Add(holes)
	}
	if soft > 0 {
		s.n.transitionFaults.Add(soft)
		s.n.pageFaults.Add(soft)
		g.faults.soft.Add(soft)
		r.set.Soft += soft
	}
	return wait
}

// pin makes a page that has a frame valid and pins it. It returns the number of soft faults that this took. The PFN lock
// is held.
// +checklocks:g.mu
// +checklocks:g.sys.pfn.mu
func (g *Segment) pin(l *leaf, i uint, w pte) (soft uint64) {
	s := g.sys
	if w.kind() == kindTransition {
		s.rec.set(l, i, validPTE(w.frame()))
		s.pfn.SetPriority(w.frame(), g.rule.Priority) // it may have been offered
		if s.pfn.MakeValid(w.frame()) {
			g.ahead.hit()
			s.n.readAheadHits.Add(1)
		}
		soft = 1
	}
	s.rec.access(l, i)
	s.pfn.Pin(w.frame())
	return soft
}

// queue marks a paged page inIO and adds it to the runs. The PFN lock is held.
// +checklocks:r.g.mu
// +checklocks:r.g.sys.pfn.mu
func (r *reading) queue(id uint32, l *leaf, i uint, p uint64) {
	s := r.g.sys
	at := s.rec.word(l, i).location()
	f, _ := s.alloc(makeOwner(id, i), at, false)
	var buf []byte
	if f != 0 {
		s.pfn.SetPriority(f, r.g.rule.Priority)
		buf = s.pfn.Bytes(f)
	} else {
		buf = r.buffer(p)
	}
	s.rec.set(l, i, s.rec.word(l, i).as(kindInIO))
	if n := len(r.runs); n > 0 {
		last := &r.runs[n-1]
		k := uint64(len(last.frames))
		if last.first+k == p && last.at.file() == at.file() && last.at.slot()+k == at.slot() {
			last.frames = append(last.frames, f)
			last.bufs = append(last.bufs, buf)
			return
		}
	}
	r.runs = append(r.runs, run{first: p, at: at, frames: []pfn.Frame{f}, bufs: [][]byte{buf}})
}

// alloc takes a frame for a page; 0 if none is left. The writer is woken before it comes to that. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) alloc(o owner, original location, zero bool) (pfn.Frame, bool) {
	f, zeroed := s.pfn.Alloc(partOf(s.rec.leaves.At(o.leaf()).seg), uint64(o), uint64(original), zero, 0)
	if f == 0 || s.pfn.Available() < s.lowFrames() {
		s.writer.kick()
		s.trimmer.kick()
	}
	return f, zeroed
}

// fetch does the reads that pass gathered and makes their pages valid. If a page cannot be read, the others are still
// completed; the read as a whole then fails.
//
// A trim may have gone by meanwhile: the invalidation waits for a READ into the host's cache, but not for one that goes
// past it (O_DIRECT). So the pages enter the working set, as host says, when they become valid.
func (r *reading) fetch(host bool) error {
	if len(r.runs) == 0 {
		return nil
	}
	s, g := r.g.sys, r.g
	s.pressure.stall()
	for i := range r.runs {
		n := &r.runs[i]
		n.errs = s.files.at(n.at.file()).read(n.at.slot(), n.bufs)
	}
	s.pressure.resume()
	failed := false
	var pages, ahead, bounced uint64
	g.mu.Lock()
	s.pfn.Lock()
	for i := range r.runs {
		n := &r.runs[i]
		for j, f := range n.frames {
			p := n.first + uint64(j)
			if !r.asked(p) {
				ahead++
				r.endAhead(n, j)
				continue
			}
			pages++
			if n.errs != nil && n.errs[j] != nil {
				failed = true
				if n.errs[j] == errChecksum {
					s.n.checksumErrors.Add(1)
				} else {
					s.n.readErrors.Add(1)
				}
				r.unmark(p, f)
				continue
			}
			if f == 0 {
				bounced++
				r.unmark(p, 0)
			} else {
				id, i := g.leafAt(p>>viewShift), uint(p%ViewPages)
				l := s.rec.leaves.At(id)
				s.rec.set(l, i, validPTE(f))
				s.pfn.MakeValid(f)
				if s.isCompressed(n.at) { // it would be in memory twice
					s.freeLocation(location(s.pfn.SetDirty(f)))
				}
				if host {
					s.mapHost(id, l, pageMask(i, i))
				}
				r.set.frames[p-r.first] = f // its reference is now the reply's pin
			}
			r.set.slices[p-r.first] = n.bufs[j]
		}
	}
	s.pfn.Unlock()
	for i := range r.runs {
		g.endIO(r.runs[i].io)
	}
	g.mu.Unlock()
	s.n.pageReads.Add(uint64(len(r.runs)))
	s.n.pagesInput.Add(pages + ahead)
	s.n.pagesReadAhead.Add(ahead)
	s.n.hardFaults.Add(pages)
	g.faults.hard.Add(pages)
	r.set.Hard += pages
	s.n.pageFaults.Add(pages)
	s.n.bouncedReads.Add(bounced)
	r.runs = r.runs[:0]
	if failed {
		return StatusInPageError
	}
	return nil
}

// Prefetch reads the paged pages among first..last back into frames, as far as frames are free and the file's working-set
// limit goes, and leaves them on Standby. It returns how many pages it brought in.
func (g *Segment) Prefetch(first, last uint64) (uint64, error) {
	var n uint64
	for {
		g.mu.Lock()
		key, id := g.nextLeaf(first >> viewShift)
		g.mu.Unlock()
		if id == 0 || key > last>>viewShift {
			return n, nil
		}
		if g.atLimit() {
			return n, nil
		}
		lo, hi := max(first, key<<viewShift), min(last, key<<viewShift+ViewPages-1)
		in, err := g.prefetchView(lo, hi)
		n += in
		if err != nil {
			return n, err
		}
		if first = hi + 1; first > last {
			return n, nil
		}
	}
}

func (g *Segment) prefetchView(lo, hi uint64) (uint64, error) {
	before := g.sys.n.pagesInput.Load()
	r := reading{g: g, first: lo, last: hi, set: g.newReadSet(hi - lo + 1), sharing: true}
	err := r.do(false)
	s := g.sys
	// What the read made valid is in no view: out of the working set with it again.
	g.mu.Lock()
	s.pfn.Lock()
	if id := g.leafAt(lo >> viewShift); id != 0 {
		s.trimPages(s.rec.leaves.At(id), ^s.rec.leaves.At(id).host)
	}
	s.pfn.Unlock()
	g.mu.Unlock()
	r.set.Done()
	return s.n.pagesInput.Load() - before, err
}
