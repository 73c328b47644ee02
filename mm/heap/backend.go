package heap

// The back end: blocks of segments, in free lists by size.

// block is a busy block of a segment or a subsegment.
type block struct {
	at  uint64 // of its header
	e   entry
	seg segment // unless it is in a subsegment
	sub *subsegment
}

func (h *object) list(i uint64) uint64 { return h.base + h.l.lists + i*2*h.l.ptr }

func (h *object) mark(i uint64, set bool) {
	at := h.base + h.l.bitmap + i/64*8
	w := h.u64(at) &^ (1 << (i % 64))
	if set {
		w |= 1 << (i % 64)
	}
	h.put(at, w, 8)
}

// insertFree writes the header of a free block and puts it into its list.
func (h *object) insertFree(s *segment, b, units, prev uint64) {
	h.setHeader(b, entry{size: units, prev: prev, seg: s.offset(b)})
	if h.has(FreeChecking) {
		h.fill(b+2*h.l.unit, (units-2)*h.l.unit, freeFill)
	}
	i := listOf(units)
	h.link(h.list(i), b+h.l.unit)
	h.mark(i, true)
}

// removeFree takes the free block at b out of its list.
func (h *object) removeFree(b, units uint64) {
	i := listOf(units)
	if h.unlink(b + h.l.unit) {
		if h.pointer(h.list(i)) != h.list(i) {
			h.fail(b, "a free block in a list of another size")
		}
		h.mark(i, false)
	}
}

// insertRun makes free blocks of a free run that is in no list, and tells the block behind it. A block is no longer than
// maxUnits, so a longer run is several.
func (h *object) insertRun(s *segment, b, units, prev uint64) {
	for units > 0 {
		n := min(units, maxUnits)
		if units-n == 1 {
			n--
		}
		h.insertFree(s, b, n, prev)
		b, units, prev = b+n*h.l.unit, units-n, n
	}
	h.setPrev(b, prev)
}

// join frees a run: it takes the free blocks before and behind it along. The run is in no list; its own header
// and the one behind it are there.
func (h *object) join(s *segment, b, units, prev uint64) (start, n, before uint64) {
	b, units, prev = h.gather(s, b, units, prev)
	h.insertRun(s, b, units, prev)
	return b, units, prev
}

// gather is join without putting the run into the lists.
func (h *object) gather(s *segment, b, units, prev uint64) (uint64, uint64, uint64) {
	for {
		next := b + units*h.l.unit
		e := h.header(next)
		if e.is(flagBusy) {
			break
		}
		h.checkNext(s, next, e)
		h.removeFree(next, e.size)
		h.wipe(next)
		units += e.size
	}
	if prev != 0 && b != s.first {
		before := b - prev*h.l.unit
		if before < s.first || before > b {
			h.fail(b, "the size of the block before")
		}
		if e := h.header(before); !e.is(flagBusy) {
			if e.size != prev {
				h.fail(b, "the size of the block before")
			}
			h.checkFree(s, before, e)
			h.removeFree(before, prev)
			h.wipe(b)
			b, units, prev = before, units+prev, e.prev
		}
	}
	return b, units, prev
}

// checkFree checks the free block at b in s against its neighbours.
func (h *object) checkFree(s *segment, b uint64, e entry) {
	h.checkBlock(s, b, e)
	h.checkFreeHeader(b, e)
}

// checkNext is checkFree without the neighbour before, which may be wiped already.
func (h *object) checkNext(s *segment, b uint64, e entry) {
	h.checkBounds(s, b, e)
	h.checkFreeHeader(b, e)
}

func (h *object) checkFreeHeader(b uint64, e entry) {
	if e.size < 2 || e.flags != 0 {
		h.fail(b, "a free block's header")
	}
	if h.has(FreeChecking) && !h.filled(b+2*h.l.unit, (e.size-2)*h.l.unit, freeFill) {
		h.fail(b, "a free block was written to")
	}
}

// checkBlock checks that a block with header e can be where it is, and that its neighbours know it.
func (h *object) checkBlock(s *segment, b uint64, e entry) {
	l := h.l
	h.checkBounds(s, b, e)
	if e.prev == 0 {
		if b != s.first && b%l.page != 0 {
			h.fail(b, "the size of the block before")
		}
		return
	}
	before := b - e.prev*l.unit
	if before > b || before < s.base {
		h.fail(b, "the size of the block before")
	}
	if p := h.header(before); p.size != e.prev {
		h.fail(b, "two neighbours disagree")
	}
}

// findFree takes a free block of at least units out of its list, and reports false if there is none.
func (h *object) findFree(units uint64) (s segment, b uint64, e entry, ok bool) {
	const look = 32 // in the list of sizes on both sides of units, before larger ones
	first := listOf(units)
	words := [2]uint64{h.u64(h.base + h.l.bitmap), h.u64(h.base + h.l.bitmap + 8)}
	has := func(i uint64) bool { return words[i/64]>>(i%64)&1 != 0 }
	if has(first) {
		if s, b, e, ok = h.firstFit(first, units, look); ok {
			return
		}
	}
	for i := first + 1; i < freeLists; i++ {
		if has(i) {
			if s, b, e, ok = h.firstFit(i, units, 1); ok {
				return
			}
			h.fail(h.list(i), "a free list is empty or has a block of another size")
		}
	}
	if has(first) && first >= 64 {
		return h.firstFit(first, units, h.steps)
	}
	return
}

func (h *object) firstFit(i, units, look uint64) (s segment, b uint64, e entry, ok bool) {
	head := h.list(i)
	for node := h.after(head); node != head && look > 0; node, look = h.after(node), look-1 {
		b = node - h.l.unit
		if e = h.header(b); e.size < units {
			if listOf(e.size) != i || e.flags != 0 {
				h.fail(b, "a free block in a list of another size")
			}
			continue
		}
		s = h.segmentOf(b, e.seg)
		h.checkFree(&s, b, e)
		h.removeFree(b, e.size)
		return s, b, e, true
	}
	return
}

// take gives a free run at b, in no list, away as a busy block of units and puts what is left back.
func (h *object) take(s *segment, b, run, units, prev uint64, flags uint8, unused uint64) uint64 {
	if rest := run - units; rest == 1 {
		unused += h.l.unit
		units = run
	} else if rest > 1 {
		// Free blocks side by side are longer together than a block may be. What is left here may no longer be.
		for next := b + run*h.l.unit; ; next = b + run*h.l.unit {
			e := h.header(next)
			if e.flags != 0 {
				break
			}
			h.removeFree(next, e.size)
			h.wipe(next)
			run += e.size
		}
	}
	h.setHeader(b, entry{size: units, flags: flags, prev: prev, seg: s.offset(b), unused: uint8(unused)})
	end := b + units*h.l.unit
	if run > units {
		h.insertRun(s, end, run-units, units)
	} else {
		h.setPrev(end, units)
	}
	return units
}

// allocate takes a block of units from the back end. The block's header is at b; 0 says that there is no memory.
func (h *object) allocate(units uint64, flags uint8, unused uint64) (b uint64) {
	for {
		s, b, e, ok := h.findFree(units)
		if ok {
			h.take(&s, b, e.size, units, e.prev, flags, unused)
			return b
		}
		if h.extend(units) {
			continue
		}
		if h.p.fixed != 0 || !h.grow(units) {
			return 0
		}
	}
}

// extend commits more of a segment, so that a block of units fits there.
func (h *object) extend(units uint64) bool {
	head := h.base + h.l.ucrHead
	for node := h.after(head); node != head; node = h.after(node) {
		at := node - h.l.unit
		e := h.header(at)
		s := h.segmentOf(at, e.seg)
		u := h.ucrAt(at, e)
		if u.addr > s.end() || u.size > s.end()-u.addr {
			h.fail(at, "the end of a committed run")
		}
		before, behind := h.freeAround(&s, u)
		need := units*h.l.unit - min(units*h.l.unit, before)
		if need > u.size && need <= u.size+behind {
			need = u.size
		}
		if need > 0 && need <= u.size && h.commitMore(&s, u, need) {
			return true
		}
	}
	return false
}

// freeAround is how many bytes before a committed run's end are free, and how many behind the uncommitted range there
// would be if that were committed as a whole.
func (h *object) freeAround(s *segment, u ucr) (before, behind uint64) {
	if u.prev != 0 {
		b := u.at - u.prev*h.l.unit
		if b < s.base || b > u.at {
			h.fail(u.at, "the size of the block before")
		}
		if e := h.header(b); !e.is(flagBusy) && e.size == u.prev {
			before = u.prev * h.l.unit
		}
	}
	if next := u.addr + u.size; next < s.end() {
		behind = h.l.ucrSize
		if e := h.header(next); !e.is(flagBusy) {
			behind += e.size * h.l.unit
		}
	}
	return before, behind
}

// checkBounds is checkBlock without the neighbour before.
func (h *object) checkBounds(s *segment, b uint64, e entry) {
	next := b + e.size*h.l.unit
	if e.size == 0 || b%h.l.unit != 0 || b < s.first || next+h.l.ucrSize > s.end() || e.seg != s.offset(b) {
		h.fail(b, "a block outside its segment")
	}
	if n := h.header(next); n.prev != e.size {
		h.fail(b, "two neighbours disagree")
	}
}

// release frees the busy block at b in s.
func (h *object) release(s *segment, b uint64, e entry) {
	start, n, prev := h.gather(s, b, e.size, e.prev)
	given := false
	if n*h.l.unit >= decommitThreshold {
		_, given = h.decommit(s, start, n, prev, decommitKeep)
	}
	if !given {
		h.insertRun(s, start, n, prev)
	}
	h.dropEmpty(s)
}

// resize makes the busy block b have units where it stands, and reports whether it could.
func (h *object) resize(b *block, units, size uint64) bool {
	l := h.l
	for {
		run := b.e.size
		next := b.at + run*l.unit
		e := h.header(next)
		if !e.is(flagBusy) {
			h.checkFree(&b.seg, next, e)
			run += e.size
		}
		if units <= run {
			if units > b.e.size || (e.flags&flagBusy == 0 && units < b.e.size) {
				h.removeFree(next, e.size)
				h.wipe(next)
			} else {
				run = b.e.size
			}
			h.split(b, run, units, size)
			return true
		}
		// What follows may be the end of what is committed.
		at := b.at + run*l.unit
		e = h.header(at)
		if !e.is(flagUCR) {
			return false
		}
		u := h.ucrAt(at, e)
		need := alignUp((units-run)*l.unit, l.page)
		if need > u.size || !h.commitMore(&b.seg, u, need) {
			return false
		}
	}
}

// split cuts a run that begins with the busy block b into that block, now of units, and a free rest. The run's free part
// is in no list.
func (h *object) split(b *block, run, units, size uint64) {
	h.take(&b.seg, b.at, run, units, b.e.prev, b.e.flags, units*h.l.unit-size)
	b.e = h.header(b.at)
}
