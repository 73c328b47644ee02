package heap

// Blocks that are reservations of their own: those above the heap's threshold, and all blocks of the page heap.

// largeBlock is the decoded header of such a block.
type largeBlock struct {
	base    uint64
	commit  uint64 // bytes
	reserve uint64 // bytes
	user    uint64 // user value
	data    uint64 // address
	size    uint64 // bytes asked for
	extra   bool   // user is meant
	page    bool   // of the page heap: ends at the end of its last page
}

func (h *object) largeSeal(b *largeBlock, e entry) uint64 {
	s := sealOf(h.p.key, h.base, b.base, b.commit, b.reserve, b.user, b.data, b.size, e.word())
	if h.l.ptr == 4 {
		s &= 0xFFFFFFFF
	}
	return s
}

// allocLarge takes a block of size bytes from the space; nil says that there is no memory.
func (h *object) allocLarge(size uint64, extra bool) *largeBlock {
	l := h.l
	b := &largeBlock{size: size, extra: extra, page: h.has(PageAllocs)}
	if b.page {
		b.commit = alignUp(l.pageSize+l.unit+alignUp(size, l.unit), l.page)
		b.reserve = b.commit + l.page // a page that is never committed guards the end
	} else {
		b.commit = alignUp(l.largeSize+size, l.page)
		b.reserve = b.commit
	}
	if h.l.ptr == 4 && b.reserve > 1<<31 {
		return nil
	}
	base, err := h.reserve(b.reserve, " block")
	if err != nil {
		return nil
	}
	if h.space.Commit(base, b.commit, h.protect()) != nil {
		h.space.Release(base)
		return nil
	}
	b.base, b.data = base, base+l.largeSize
	if b.page {
		b.data = base + b.commit - alignUp(size, l.unit)
		h.put(b.data-8, pageWord(b)^h.p.key, 8)
		h.fill(b.data+size, alignUp(size, l.unit)-size, pageFill*0x01010101)
	}
	h.storeLarge(b)
	h.linkLast(h.base+l.largeHead, base)
	h.p.large++
	h.p.reserved += b.reserve
	h.store()
	return b
}

// pageWord is the header before the data of a page-heap block: how many 64 KiB steps it is to the block's base.
func pageWord(b *largeBlock) uint64 {
	n := alignDown(b.data, granularity)/granularity - b.base/granularity
	return entry{size: n & 0xFFFF, flags: flagBusy | flagLarge | flagPage, prev: n >> 16}.word()
}

func (h *object) largeEntry(b *largeBlock) entry {
	e := entry{flags: flagBusy | flagLarge, unused: uint8(h.l.largeSize)}
	if b.extra {
		e.flags |= flagExtra
	}
	if b.page {
		e.flags |= flagPage
	} else {
		e.size = b.commit - b.size
	}
	return e
}

// storeLarge writes the header but for its link.
func (h *object) storeLarge(b *largeBlock) {
	l := h.l
	e := h.largeEntry(b)
	h.put(b.base+2*l.ptr, b.commit/l.page, 4)
	h.put(b.base+2*l.ptr+4, b.reserve/l.page, 4)
	h.setPointer(b.base+2*l.ptr+8, b.user)
	h.put(b.base+3*l.ptr+8, h.largeSeal(b, e), int(l.ptr))
	h.setHeader(b.base+6*l.ptr, e)
	if b.page {
		h.setPointer(b.base+8*l.ptr, b.data)
		h.setPointer(b.base+9*l.ptr, b.size)
	}
}

// largeAt reads the header at base and checks that the list of large blocks holds it.
func (h *object) largeAt(base uint64) *largeBlock {
	l := h.l
	if base%granularity != 0 {
		h.fail(base, "a large block's address")
	}
	e := h.header(base + 6*l.ptr)
	c := h.read(base, int(l.pageSize))
	at := func(off, n uint64) uint64 { return le(c[off:][:n]) }
	b := &largeBlock{base: base, commit: at(2*l.ptr, 4) * l.page, reserve: at(2*l.ptr+4, 4) * l.page,
		user: at(2*l.ptr+8, l.ptr), extra: e.is(flagExtra), page: e.is(flagPage)}
	if b.page {
		b.data, b.size = at(8*l.ptr, l.ptr), at(9*l.ptr, l.ptr)
	} else {
		b.data, b.size = base+l.largeSize, b.commit-e.size
	}
	if !e.is(flagBusy|flagLarge) || at(3*l.ptr+8, l.ptr) != h.largeSeal(b, e) {
		h.fail(base, "a large block's header")
	}
	if h.after(base); h.pointer(h.pointer(base+l.ptr)) != base {
		h.fail(base, "a list's pointers")
	}
	return b
}

// largeOf finds the block whose data is at p and whose header before it is e.
func (h *object) largeOf(p uint64, e entry) *largeBlock {
	base := p - h.l.largeSize
	if e.is(flagPage) {
		base = alignDown(p, granularity) - (e.size|e.prev<<16)*granularity
	}
	b := h.largeAt(base)
	if b.data != p {
		h.fail(p, "not the beginning of a block")
	}
	return b
}

// checkLarge checks what overruns of a page-heap block damage first.
func (h *object) checkLarge(b *largeBlock) {
	if !b.page {
		return
	}
	if h.u64(b.data-8)^h.p.key != pageWord(b) {
		h.fail(b.data, "written before a block")
	}
	if !h.filled(b.data+b.size, alignUp(b.size, h.l.unit)-b.size, pageFill*0x01010101) {
		h.fail(b.data, "written behind a block")
	}
}

// freeLarge gives a block back. The addresses of a page-heap block stay reserved for a while: using them is an access
// violation.
func (h *object) freeLarge(b *largeBlock) {
	h.checkLarge(b)
	h.unlink(b.base)
	h.p.large--
	gone := b.base
	if b.page {
		if err := h.space.Decommit(b.base, b.commit); err != nil {
			h.access(b.base, err)
		}
		gone = h.quarantine(b.base, b.reserve)
	} else {
		h.p.reserved -= b.reserve
	}
	h.store()
	if gone != 0 {
		if err := h.space.Release(gone); err != nil {
			h.access(gone, err)
		}
	}
}

// quarantine puts a freed block into the ring of those whose addresses stay reserved, and returns the base of the one
// that leaves it, or 0. A slot holds the base in 64 KiB steps with the key over it and a sum in its upper byte.
func (h *object) quarantine(base, reserve uint64) (gone uint64) {
	h.p.reserved -= reserve
	next := uint64(h.u32(h.base + h.l.ringNext))
	if next >= quarantineSlots {
		h.fail(h.base+h.l.ringNext, "the ring of freed blocks")
	}
	at := h.base + h.l.ring + 8*next
	gone = h.quarantined(at)
	h.put(at, h.slotWord(at, base), 8)
	h.put(h.base+h.l.ringNext, (next+1)%quarantineSlots, 4)
	return gone
}

func (h *object) slotWord(at, base uint64) uint64 {
	v := base / granularity
	return (v | sealOf(h.p.key, at, v)<<48) ^ h.p.key
}

func (h *object) quarantined(at uint64) uint64 {
	w := h.u64(at)
	if w == 0 {
		return 0
	}
	base := (w ^ h.p.key) & (1<<48 - 1) * granularity
	if h.slotWord(at, base) != w {
		h.fail(at, "the ring of freed blocks")
	}
	return base
}

// resizeLarge changes a block where it is, and reports whether it could. What it no longer needs is decommitted, so that
// it does not grow again.
func (h *object) resizeLarge(b *largeBlock, size uint64) bool {
	l := h.l
	if b.page {
		return size == b.size
	}
	commit := alignUp(l.largeSize+size, l.page)
	if commit > b.commit || commit < size {
		return false
	}
	if commit < b.commit {
		if err := h.space.Decommit(b.base+commit, b.commit-commit); err != nil {
			return false
		}
	}
	b.commit, b.size = commit, size
	h.storeLarge(b)
	return true
}
