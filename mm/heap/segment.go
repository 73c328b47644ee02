package heap

// segment is a decoded segment header.
type segment struct {
	base  uint64
	size  uint64 // bytes reserved
	first uint64 // its first block
	index uint32 // 0 for the one the heap's header is in; never used again when the segment goes
}

func (s *segment) end() uint64 { return s.base + s.size }

// offset is what a header of the block at b has for SegmentOffset.
func (s *segment) offset(b uint64) uint8 {
	if s.index == 0 {
		return 0
	}
	return uint8(b/granularity-s.base/granularity) + 1
}

func (h *object) segSeal(s *segment) uint64 {
	return sealOf(h.p.key, h.base, s.base, s.size, s.first, uint64(s.index))
}

// segmentAt reads the segment header at base.
func (h *object) segmentAt(base uint64) segment {
	l := h.l
	b := h.read(base+l.segSignature, int(l.segSeal+8-l.segSignature))
	at := func(off, n uint64) uint64 { return le(b[off-l.segSignature:][:n]) }
	s := segment{base: base, size: at(l.segPages, 4) * l.page, first: at(l.segFirst, l.ptr), index: uint32(at(l.segIndex, 4))}
	if at(l.segSignature, 4) != segmentSignature || at(l.segHeap, l.ptr) != h.base || at(l.segSeal, 8) != h.segSeal(&s) {
		h.fail(base, "a segment's header")
	}
	return s
}

// segmentOf finds the segment of the block at b, whose header has off for SegmentOffset.
func (h *object) segmentOf(b uint64, off uint8) segment {
	base := h.base
	if off != 0 {
		base = alignDown(b, granularity) - uint64(off-1)*granularity
	}
	s := h.segmentAt(base)
	if b < s.first || b >= s.end() || s.offset(b) != off {
		h.fail(b, "a block outside its segment")
	}
	return s
}

// nextSegment is the segment behind s, and false at the end of the list.
func (h *object) nextSegment(s *segment) (segment, bool) {
	node := h.after(s.base + h.l.segLink)
	if node == h.base+h.l.segHead {
		return segment{}, false
	}
	return h.segmentAt(node - h.l.segLink), true
}

// newSegment makes a segment of size bytes over a reservation at base, of which commit bytes are committed.
func (h *object) newSegment(base, size, commit, header uint64, index uint32) {
	l := h.l
	s := segment{base, size, base + header, index}
	h.put(base+l.segSignature, segmentSignature, 4)
	h.put(base+l.segIndex, uint64(index), 4)
	h.setPointer(base+l.segHeap, h.base)
	h.put(base+l.segPages, size/l.page, 4)
	h.setPointer(base+l.segFirst, s.first)
	h.put(base+l.segSeal, h.segSeal(&s), 8)
	h.put(base+l.segUncommitted, (size-commit)/l.page, 4)
	h.linkLast(h.base+l.segHead, base+l.segLink)
	h.setHeader(base, entry{size: header / l.unit, flags: flagBusy | flagContainer, seg: s.offset(base)})
	u := base + commit - l.ucrSize
	h.setUCR(&s, u, 0, size-commit)
	h.insertRun(&s, s.first, (u-s.first)/l.unit, header/l.unit)
}

// grow adds a segment with room for a block of units, and reports whether it could.
func (h *object) grow(units uint64) bool {
	l := h.l
	need := l.segSize + units*l.unit + l.ucrSize
	size := max(h.p.next, alignUp(need, granularity))
	commit := min(alignUp(need, max(l.page, commitStep)), size)
	base, err := h.reserve(size, " segment")
	for err != nil && size/2 >= need {
		size = alignUp(size/2, granularity)
		base, err = h.reserve(size, " segment")
	}
	if err != nil {
		return false
	}
	commit = min(commit, size)
	if h.space.Commit(base, commit, h.protect()) != nil {
		h.space.Release(base)
		return false
	}
	h.newSegment(base, size, commit, l.segSize, h.lastIndex()+1)
	h.p.segments++
	h.p.reserved += size
	h.p.next = min(2*h.p.next, maxSegment)
	h.store()
	return true
}

func (h *object) lastIndex() uint32 {
	last := h.pointer(h.base + h.l.segHead + h.l.ptr)
	s := h.segmentAt(last - h.l.segLink)
	return s.index
}

// dropEmpty releases a segment of which nothing is in use any more. To look takes no time: free blocks coalesce, so a
// busy one is never far.
func (h *object) dropEmpty(s *segment) {
	if s.index == 0 {
		return
	}
	var free, ucrs []uint64
	for b := s.first; b < s.end(); {
		e := h.header(b)
		switch {
		case e.is(flagUCR):
			u := h.ucrAt(b, e)
			if u.addr > s.end() || u.size > s.end()-u.addr {
				h.fail(b, "the end of a committed run")
			}
			ucrs = append(ucrs, b)
			b = u.addr + u.size
		case e.is(flagBusy):
			return
		default:
			h.checkFree(s, b, e)
			free = append(free, b)
			b += e.size * h.l.unit
		}
	}
	for _, b := range free {
		h.removeFree(b, h.header(b).size)
	}
	for _, u := range ucrs {
		h.unlink(u + h.l.unit)
	}
	h.unlink(s.base + h.l.segLink)
	h.p.segments--
	h.p.reserved -= s.size
	h.store()
	if err := h.space.Release(s.base); err != nil {
		h.access(s.base, err)
	}
}

// ucr is the block that ends a committed run: its header, a link in the list of all of them, and where the uncommitted
// range behind it lies.
type ucr struct {
	at   uint64 // of the block
	prev uint64 // units of the block before it
	addr uint64 // of the range: the end of the block
	size uint64 // bytes; 0 at the end of a segment that is committed to its end
}

func (h *object) setUCR(s *segment, at, prev, size uint64) {
	l := h.l
	h.setHeader(at, entry{size: l.ucrSize / l.unit, flags: flagBusy | flagUCR, prev: prev, seg: s.offset(at)})
	h.setPointer(at+l.unit+2*l.ptr, at+l.ucrSize)
	h.sizeUCR(at, size)
	h.link(h.base+l.ucrHead, at+l.unit)
}

func (h *object) sizeUCR(at, size uint64) {
	h.setPointer(at+h.l.unit+3*h.l.ptr, size)
	h.put(at+h.l.unit+4*h.l.ptr, sealOf(h.p.key, at, size), 8)
}

// ucrAt reads the block at b, whose header is e.
func (h *object) ucrAt(b uint64, e entry) ucr {
	l := h.l
	c := h.read(b+l.unit+2*l.ptr, int(2*l.ptr+8))
	u := ucr{b, e.prev, le(c[:l.ptr]), le(c[l.ptr:][:l.ptr])}
	if !e.is(flagBusy|flagUCR) || u.addr != b+l.ucrSize || le(c[2*l.ptr:]) != sealOf(h.p.key, b, u.size) ||
		u.addr%l.page != 0 || u.size%l.page != 0 {
		h.fail(b, "the end of a committed run")
	}
	return u
}

// commitMore commits at least bytes of the range behind u, in whole pages, and reports whether it could. What becomes
// free is one free run with what was free before and behind it.
func (h *object) commitMore(s *segment, u ucr, bytes uint64) bool {
	l := h.l
	bytes = alignUp(bytes, l.page)
	want := min(max(bytes, commitStep), u.size)
	if h.space.Commit(u.addr, want, h.protect()) != nil {
		if want = bytes; h.space.Commit(u.addr, want, h.protect()) != nil {
			return false
		}
	}
	h.addUncommitted(s, -int64(want))
	h.unlink(u.at + l.unit)
	rest := u.size - want
	run := want / l.unit
	if rest == 0 && u.addr+want < s.end() {
		run += l.ucrSize / l.unit // up to the committed run behind
	}
	end := u.at + run*l.unit
	if rest > 0 || u.addr+want == s.end() {
		h.setUCR(s, end, 0, rest)
	}
	h.join(s, u.at, run, u.prev)
	return true
}

func (h *object) addUncommitted(s *segment, bytes int64) {
	at := s.base + h.l.segUncommitted
	h.put(at, uint64(int64(h.u32(at))+bytes/int64(h.l.page)), 4)
}

// decommit gives back the whole pages of a free run at b that is in no list, all but the first keep bytes, and puts what
// is left into the lists. Nothing is kept behind a range that is uncommitted already: that one grows. It returns
// where the first block of what is left is, or where the uncommitted range ends; and false, having done nothing, if there
// are no such pages or the space refuses.
func (h *object) decommit(s *segment, b, units, prev, keep uint64) (rest uint64, ok bool) {
	l := h.l
	end := b + units*l.unit
	hole, behind := h.holeBefore(s, b, prev), ucr{}
	from, to := b, alignDown(end, l.page)
	if hole.at == 0 {
		if from = alignUp(b+keep+l.ucrSize, l.page); from-l.ucrSize-b == l.unit {
			from += l.page
		}
	}
	if e := h.header(end); e.is(flagUCR) {
		behind = h.ucrAt(end, e)
		to = behind.addr
	} else if end-to == l.unit {
		to -= l.page
	}
	if to <= from || to-from > s.size {
		return 0, false
	}
	if behind.at != 0 {
		h.unlink(behind.at + l.unit) // its block goes with the pages
	}
	if h.space.Decommit(from, to-from) != nil {
		if behind.at != 0 {
			h.link(h.base+l.ucrHead, behind.at+l.unit)
		}
		return 0, false
	}
	h.addUncommitted(s, int64(to-from))
	size := to - from + behind.size
	rest = b
	if hole.at != 0 {
		h.sizeUCR(hole.at, hole.size+size)
		rest = from + size
	} else {
		u := from - l.ucrSize
		h.setUCR(s, u, prev, size)
		if u > b {
			h.insertRun(s, b, (u-b)/l.unit, prev)
		}
	}
	switch {
	case behind.at != 0:
	case to < end:
		h.insertRun(s, to, (end-to)/l.unit, 0)
	default:
		h.setPrev(end, 0)
	}
	return rest, true
}

// holeBefore is the end of the committed run before the uncommitted range that ends at b; at is 0 if none does.
func (h *object) holeBefore(s *segment, b, prev uint64) ucr {
	if prev != 0 || b == s.first {
		return ucr{}
	}
	head := h.base + h.l.ucrHead
	for node := h.after(head); node != head; node = h.after(node) {
		if u := h.ucrAt(node-h.l.unit, h.header(node-h.l.unit)); u.addr+u.size == b {
			return u
		}
	}
	h.fail(b, "the size of the block before")
	return ucr{}
}

// setPrev tells the block at b how long the one before it is.
func (h *object) setPrev(b, units uint64) {
	e := h.header(b)
	e.prev = units
	h.setHeader(b, e)
}
