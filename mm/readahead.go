package mm

import "memfs/mm/pfn"

// Read-ahead: a hard fault on few pages reads their neighbours along, those that lie beside them in the page file because
// they were written out with them. It costs little more than the read that has to be made anyway, and saves one for each
// neighbour that is touched before its frame is wanted for something else. How far to read adapts to how often that
// happens, a segment at a time (compare Linux's swapin_nr_pages). Large reads need none: whoever asks for them looks ahead
// by itself.

const (
	aheadMost   = 16 // pages
	aheadFirst  = 8
	aheadPeriod = 256 // pages read ahead between two looks at the hits
	aheadProbe  = 32  // faults between two tries when read-ahead is off
)

// readAhead is the state of a segment. The zero value is a new one.
type readAhead struct {
	off    uint8  // log2 of aheadMost over the window; beyond its length: no read-ahead
	tuned  bool   // off has been set
	pages  uint16 // read ahead in this period
	hits   uint16 // of pages read ahead, in this period
	faults uint16 // since read-ahead is off
}

func (a *readAhead) hit() { a.hits = min(a.hits+1, 1<<15) }

// window is how many pages one fault should read in all; 1 is no read-ahead.
func (a *readAhead) window() uint64 {
	if !a.tuned {
		return aheadFirst
	}
	if w := uint64(aheadMost) >> a.off; w > 1 {
		return w
	}
	if a.faults++; a.faults%aheadProbe == 0 {
		return aheadFirst
	}
	return 1
}

// issued counts pages read ahead, and at the end of a period looks at what they were good for. A page costs about a
// thirtieth of the fault that it may save.
func (a *readAhead) issued(n uint64) {
	if a.pages += uint16(n); a.pages < aheadPeriod {
		return
	}
	if !a.tuned {
		a.tuned, a.off = true, 1
	}
	switch {
	case a.hits >= aheadPeriod/12 && a.off > 0:
		a.off--
	case a.hits < aheadPeriod/32 && uint64(aheadMost)>>a.off > 1:
		a.off++
	}
	a.pages, a.hits = 0, 0
}

// asked says whether the read is for the page, not just reading it along.
func (r *reading) asked(page uint64) bool { return r.first <= page && page <= r.last }

// readAhead lengthens the one run of a small read by its neighbours in file and page file, as far as frames are free.
// +checklocks:r.g.mu
func (r *reading) readAhead() {
	s := r.g.sys
	switch {
	case len(r.runs) != 1 || uint64(len(r.runs[0].frames)) >= aheadMost:
		return
	case s.isCompressed(r.runs[0].at): // no I/O would be saved
		return
	}
	window := r.g.ahead.window()
	n := &r.runs[0]
	if uint64(len(n.frames)) >= window {
		return
	}
	before := len(n.frames)
	// The aligned block of pages around the run, within its view.
	block := n.first &^ (window - 1)
	id := r.g.leafAt(n.first >> viewShift)
	s.pfn.Lock()
	l := s.rec.leaves.At(id)
	for p := n.first + uint64(len(n.frames)); p < block+window && p <= n.first|(ViewPages-1); p++ {
		f := r.takeAhead(id, l, p, makeLocation(n.at.file(), n.at.slot()+(p-n.first)))
		if f == 0 {
			break
		}
		n.frames = append(n.frames, f)
		n.bufs = append(n.bufs, s.pfn.Bytes(f))
	}
	for n.first > block && n.at.slot() > 0 {
		at := makeLocation(n.at.file(), n.at.slot()-1)
		f := r.takeAhead(id, l, n.first-1, at)
		if f == 0 {
			break
		}
		n.first, n.at = n.first-1, at
		n.frames = append([]pfn.Frame{f}, n.frames...)
		n.bufs = append([][]byte{s.pfn.Bytes(f)}, n.bufs...)
	}
	s.pfn.Unlock()
	r.g.ahead.issued(uint64(len(n.frames) - before))
}

// takeAhead takes a frame for page p and marks it inIO, if its copy is at the given place and a frame is to be had
// without distress; else 0. The PFN lock is held.
// +checklocks:r.g.mu
// +checklocks:r.g.sys.pfn.mu
func (r *reading) takeAhead(id uint32, l *leaf, p uint64, at location) pfn.Frame {
	s := r.g.sys
	i := uint(p % ViewPages)
	if w := s.rec.word(l, i); r.asked(p) || !w.isPagedAt(at) {
		return 0
	}
	f, _ := s.pfn.Alloc(partOf(r.g.id), uint64(makeOwner(id, i)), uint64(at), false, s.lowFrames())
	if f != 0 {
		s.pfn.SetPriority(f, r.g.rule.Priority)
		s.rec.set(l, i, s.rec.word(l, i).as(kindInIO))
	}
	return f
}

// endAhead ends the read of page j of a run that nobody asked for. A page that could not be read stays paged: whoever
// touches it will hear of it. The PFN lock is held.
// +checklocks:r.g.mu
// +checklocks:r.g.sys.pfn.mu
func (r *reading) endAhead(n *run, j int) {
	s, p, f := r.g.sys, n.first+uint64(j), n.frames[j]
	if n.errs != nil && n.errs[j] != nil {
		r.unmark(p, f)
		return
	}
	l := s.rec.leaves.At(r.g.leafAt(p >> viewShift))
	s.rec.set(l, uint(p%ViewPages), transitionPTE(f))
	s.pfn.ReadAhead(f)
}
