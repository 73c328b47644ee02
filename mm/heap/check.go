package heap

// census is what a walk through all of a heap's segments has counted.
type census struct {
	free, ucrs  uint64
	uncommitted uint64 // bytes, of the segment under way
	withFree    uint64 // subsegments that have free blocks
	subsegments [lfhClasses]uint64
	reserved    uint64
}

// check fails unless the whole heap is consistent: every structure is well-formed, blocks tile their segments, lists and
// counts agree with what the segments hold.
func (h *object) check() {
	var c census
	s := h.segmentAt(h.base)
	n := uint32(0)
	for more := true; more; {
		n++
		h.checkSegment(&s, &c)
		s, more = h.nextSegment(&s)
	}
	if n != h.p.segments {
		h.fail(h.base, "the number of segments")
	}
	h.checkLists(&c)
	h.checkFront(&c)
	head, n := h.base+h.l.largeHead, 0
	for node := h.after(head); node != head; node = h.after(node) {
		b := h.largeAt(node)
		h.checkLarge(b)
		c.reserved += b.reserve
		n++
	}
	if n != h.p.large || c.reserved != h.p.reserved {
		h.fail(head, "the number of large blocks")
	}
	for i := range uint64(quarantineSlots) {
		h.quarantined(h.base + h.l.ring + 8*i)
	}
	if h.u32(h.base+h.l.ringNext) >= quarantineSlots {
		h.fail(h.base+h.l.ringNext, "the ring of freed blocks")
	}
}

func (h *object) checkSegment(s *segment, c *census) {
	l := h.l
	c.reserved += s.size
	c.uncommitted = 0
	e := h.header(s.base)
	if !e.is(flagBusy|flagContainer) || e.size*l.unit != s.first-s.base || e.prev != 0 || e.seg != s.offset(s.base) {
		h.fail(s.base, "a segment's first block")
	}
	prev, before := e.size, e
	for b := s.first; ; {
		e = h.header(b)
		if e.prev != prev {
			h.fail(b, "two neighbours disagree")
		}
		if e.is(flagUCR) {
			u := h.ucrAt(b, e)
			if e.seg != s.offset(b) || u.addr > s.end() || u.size > s.end()-u.addr || (u.size == 0 && u.addr != s.end()) {
				h.fail(b, "the end of a committed run")
			}
			c.ucrs++
			c.uncommitted += u.size
			if b = u.addr + u.size; b == s.end() {
				break
			}
			prev, before = 0, e
			continue
		}
		h.checkBlock(s, b, e)
		h.census(s, b, e, c)
		if e.flags == 0 && before.flags == 0 && e.size+before.size <= maxUnits {
			h.fail(b, "two free blocks side by side")
		}
		prev, before = e.size, e
		b += e.size * l.unit
	}
	if uint64(h.u32(s.base+l.segUncommitted))*l.page != c.uncommitted {
		h.fail(s.base, "the size of a segment's uncommitted ranges")
	}
}

// census checks one block of a segment and counts it.
func (h *object) census(s *segment, b uint64, e entry, c *census) {
	switch {
	case !e.is(flagBusy):
		h.checkFree(s, b, e)
		c.free++
	case !e.is(flagContainer):
		if e.flags&^(flagExtra) != flagBusy {
			h.fail(b, "a block's header")
		}
		h.checkTail(&block{at: b, e: e})
	case b+h.l.unit == h.p.table:
		h.checkTable()
	default:
		h.checkSubsegment(h.subsegmentAt(b+h.l.unit), b, e)
		sub := h.subsegmentAt(b + h.l.unit)
		c.subsegments[sub.class]++
		if sub.free > 0 {
			c.withFree++
		}
	}
}

func (h *object) checkSubsegment(s *subsegment, container uint64, c entry) {
	if s.first+s.count*s.bytes(h.l) > container+c.size*h.l.unit {
		h.fail(s.at, "a subsegment's header")
	}
	free := uint64(0)
	for i := range s.count {
		b := s.first + i*s.bytes(h.l)
		e := h.header(b)
		if e.flags&^(flagBusy|flagExtra) != flagLFH || e.prev != i || e.size != s.units || e.is(flagBusy) != h.bit(s, i) {
			h.fail(b, "a block's header")
		}
		if e.is(flagBusy) {
			h.checkTail(&block{at: b, e: e, sub: s})
		} else {
			if e != (entry{size: s.units, flags: flagLFH, prev: i}) {
				h.fail(b, "a free block's header")
			}
			free++
		}
	}
	if free != s.free {
		h.fail(s.at, "the number of a subsegment's free blocks")
	}
}

// checkLists checks that the free lists hold the free blocks and the list of UCRs the UCRs.
func (h *object) checkLists(c *census) {
	free := uint64(0)
	for i := range uint64(freeLists) {
		head := h.list(i)
		first := h.after(head)
		if h.after(h.pointer(head+h.l.ptr)) != head {
			h.fail(head, "a list's pointers")
		}
		if h.u64(h.base+h.l.bitmap+i/64*8)>>(i%64)&1 != 0 != (first != head) {
			h.fail(head, "the bitmap of free lists")
		}
		for node := first; node != head; node = h.after(node) {
			b := node - h.l.unit
			e := h.header(b)
			s := h.segmentOf(b, e.seg)
			h.checkFree(&s, b, e)
			if listOf(e.size) != i {
				h.fail(b, "a free block in a list of another size")
			}
			free++
		}
	}
	if free != c.free {
		h.fail(h.base, "the number of free blocks")
	}
	head, ucrs := h.base+h.l.ucrHead, uint64(0)
	for node := h.after(head); node != head; node = h.after(node) {
		h.ucrAt(node-h.l.unit, h.header(node-h.l.unit))
		ucrs++
	}
	if ucrs != c.ucrs {
		h.fail(head, "the number of uncommitted ranges")
	}
}

// checkFront checks that the front end's lists hold the subsegments that have free blocks.
func (h *object) checkFront(c *census) {
	if h.p.table == 0 {
		if c.subsegments != [lfhClasses]uint64{} {
			h.fail(h.base, "subsegments without a table")
		}
		return
	}
	h.checkTable()
	n := uint64(0)
	for class := range uint64(lfhClasses) {
		head := h.bucket(class)
		for node := h.after(head); node != head; node = h.after(node) {
			if s := h.subsegmentAt(node - subLink); s.class != class || s.free == 0 {
				h.fail(s.at, "a subsegment in the wrong list")
			}
			n++
		}
		if h.u64(h.subCount(class)) != c.subsegments[class] {
			h.fail(head, "the number of subsegments")
		}
	}
	if n != c.withFree {
		h.fail(h.p.table, "the number of subsegments with free blocks")
	}
}
