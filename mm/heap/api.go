package heap

import "math"

// InvalidSize is what HeapSize answers for what is no block: (SIZE_T)-1.
const InvalidSize = math.MaxUint64

// busyAt checks all there is to check about p being the data of a busy block, and finds it. Exactly one of the results
// is set.
func (h *object) busyAt(p uint64) (*block, *largeBlock) {
	l := h.l
	if p < granularity || p%l.unit != 0 {
		h.fail(p, "not the address of a block")
	}
	b := &block{at: p - l.unit}
	b.e = h.header(b.at)
	switch {
	case b.e.is(flagBusy | flagLarge):
		return nil, h.largeOf(p, b.e)
	case !b.e.is(flagBusy):
		h.fail(p, "not a busy block: freed twice?")
	case b.e.flags&(flagUCR|flagContainer) != 0:
		h.fail(p, "not a block of the caller's")
	case b.e.is(flagLFH):
		b.sub = h.subsegmentOf(b.at, b.e)
		if !h.bit(b.sub, b.e.prev) {
			h.fail(p, "not a busy block: freed twice?")
		}
	default:
		b.seg = h.segmentOf(b.at, b.e.seg)
		h.checkBlock(&b.seg, b.at, b.e)
	}
	h.checkTail(b)
	return b, nil
}

// unused is how many bytes of the block, header included, are not data.
func (b *block) unused() uint64 {
	if b.sub != nil {
		return uint64(b.e.seg)<<8 | uint64(b.e.unused)
	}
	return uint64(b.e.unused)
}

func (b *block) size(l *layout) uint64 { return b.e.size*l.unit - b.unused() }
func (b *block) data(l *layout) uint64 { return b.at + l.unit }

// userValue is where the block keeps its user value: its last pointer.
func (b *block) userValue(l *layout) uint64 { return b.data(l) + l.capacity(b.e.size) - l.ptr }

// checkTail checks the block's size and what an overrun damages first.
func (h *object) checkTail(b *block) {
	if b.unused() < 8 || b.unused() > b.e.size*h.l.unit {
		h.fail(b.at, "a block's size")
	}
	if h.has(TailChecking) && !h.filled(b.data(h.l)+b.size(h.l), 2*h.l.ptr, tailFill*0x01010101) {
		h.fail(b.at, "written behind a block")
	}
}

// need is how many bytes of capacity a block of size bytes of data takes.
func (h *object) need(size uint64, extra bool) uint64 {
	if h.has(TailChecking) {
		size += 2 * h.l.ptr
	}
	if extra {
		size += h.l.ptr
	}
	return size
}

// tooLarge reports whether no block can have size bytes.
func (h *object) tooLarge(size uint64) bool {
	if h.l.ptr == 4 {
		return size > math.MaxInt32-granularity
	}
	return size > math.MaxInt64-granularity
}

// alloc is HeapAlloc on a heap whose header is read; 0 says that there is no memory. With user not 0 the block has it as
// its user value.
func (h *object) alloc(flags uint32, size, user uint64) uint64 {
	if h.tooLarge(size) {
		return 0
	}
	extra := user != 0
	units := h.l.units(h.need(size, extra))
	if h.has(PageAllocs) || units*h.l.unit > h.p.threshold {
		return h.allocFromSpace(size, user)
	}
	if p := h.front(flags, size, user, false); p != 0 {
		return p
	}
	var kind uint8 = flagBusy
	if extra {
		kind |= flagExtra
	}
	b := h.allocate(units, kind, units*h.l.unit-size)
	if b == 0 {
		return 0
	}
	h.finish(&block{at: b, e: h.header(b)}, flags, size, user)
	return b + h.l.unit
}

func (h *object) allocFromSpace(size, user uint64) uint64 {
	if h.p.fixed != 0 && !h.has(PageAllocs) {
		return 0
	}
	b := h.allocLarge(size, user != 0)
	if b == nil {
		return 0
	}
	if user != 0 {
		b.user = user
		h.storeLarge(b)
	}
	return b.data // new pages are zero
}

// front has the front end serve an allocation; 0 says that it does not. When only is set, it takes nothing from the back
// end for it.
func (h *object) front(flags uint32, size, user uint64, only bool) uint64 {
	if !h.frontEndServes() {
		return 0
	}
	class, bytes := h.l.classOf(h.l.units(h.need(size, user != 0)) * h.l.unit)
	if class == 0 || (only && h.u16(h.base+h.l.usage+2*class) < lfhActivation) || !h.countUse(class) {
		return 0
	}
	var extra uint8
	if user != 0 {
		extra = flagExtra
	}
	b := h.frontAlloc(class, size, extra)
	if b == 0 && !only && h.addSubsegment(class, bytes) {
		b = h.frontAlloc(class, size, extra)
	}
	if b == 0 {
		return 0
	}
	e := h.header(b)
	h.finish(&block{at: b, e: e, sub: &subsegment{}}, flags, size, user)
	return b + h.l.unit
}

// finish writes what a new block has besides its header.
func (h *object) finish(b *block, flags uint32, size, user uint64) {
	l := h.l
	switch {
	case (uint64(flags)|h.p.flags)&ZeroMemory != 0:
		h.fill(b.data(l), size, 0)
	case h.has(TailChecking):
		h.fill(b.data(l), size, allocFill)
	}
	h.finishTail(b, size, user)
}

func (h *object) finishTail(b *block, size, user uint64) {
	if h.has(TailChecking) {
		h.fill(b.data(h.l)+size, 2*h.l.ptr, tailFill*0x01010101)
	}
	if b.e.is(flagExtra) {
		h.setPointer(b.userValue(h.l), user)
	}
}

// noMemory is how a call on h says that there is none.
func (h *object) noMemory(flags uint32) error {
	if (uint64(flags)|h.p.flags)&GenerateExceptions != 0 {
		return &Exception{Status: StatusNoMemory, Reason: "no memory for the block"}
	}
	return win32(errorNotEnoughMemory)
}

// noHeap is how a call says that its handle is none.
func noHeap(flags uint32) error {
	if flags&GenerateExceptions != 0 {
		return &Exception{Status: StatusAccessViolation, Reason: "not a heap"}
	}
	return win32(errorInvalidHandle)
}

// HeapAlloc takes a block of size bytes from a heap and returns its address. Blocks are aligned to two pointers. flags
// may be ZeroMemory, GenerateExceptions and NoSerialize. Without memory the result is 0 and ERROR_NOT_ENOUGH_MEMORY.
func (t *Thread) HeapAlloc(handle uint64, flags uint32, size uint64) (uint64, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return 0, noHeap(flags)
	}
	return h.allocUser(t, flags, size, 0)
}

// allocUser is HeapAlloc of a block that carries a user value, if it is not 0.
func (h *object) allocUser(t *Thread, flags uint32, size, user uint64) (p uint64, err error) {
	front := func() bool {
		p = h.front(flags, size, user, true)
		return p != 0
	}
	err = h.callOr(t, flags, front, func() error {
		if p = h.alloc(flags, size, user); p == 0 {
			return h.noMemory(flags)
		}
		return nil
	})
	if err != nil {
		p = 0
	}
	return p, err
}

// HeapFree gives a block back. The address 0 is no error, on whatever heap. What is no busy block of the heap is a
// corruption.
func (t *Thread) HeapFree(handle uint64, flags uint32, p uint64) (bool, error) {
	if p == 0 {
		return true, nil
	}
	h := t.heaps.find(handle)
	if h == nil {
		return false, noHeap(flags)
	}
	err := h.callOr(t, flags, func() bool { return h.freeFront(p) }, func() error {
		h.free(p)
		return nil
	})
	return err == nil, err
}

// freeFront frees a block of the front end without the back end, and reports false if p is none.
func (h *object) freeFront(p uint64) bool {
	if p < granularity || p%h.l.unit != 0 || !h.header(p-h.l.unit).is(flagBusy|flagLFH) {
		return false
	}
	b, _ := h.busyAt(p)
	h.frontFree(b.sub, b.at, b.e, false)
	return true
}

func (h *object) free(p uint64) {
	b, large := h.busyAt(p)
	switch {
	case large != nil:
		h.freeLarge(large)
	case b.sub != nil:
		h.frontFree(b.sub, b.at, b.e, true)
	default:
		h.release(&b.seg, b.at, b.e)
	}
}

// HeapSize is the size of a block as it was asked for, in bytes, or InvalidSize.
func (t *Thread) HeapSize(handle uint64, flags uint32, p uint64) (size uint64, err error) {
	h := t.heaps.find(handle)
	if h == nil {
		return InvalidSize, noHeap(flags)
	}
	err = h.call(t, flags, func() error {
		size = h.sizeOf(p)
		return nil
	})
	if isCorruption(err) {
		return InvalidSize, nil
	}
	return size, err
}

func (h *object) sizeOf(p uint64) uint64 {
	b, large := h.busyAt(p)
	if large != nil {
		return large.size
	}
	return b.size(h.l)
}

// HeapReAlloc changes the size of a block, and its address if that must be; its data stays as far as both sizes go. With
// ReallocInPlaceOnly it keeps its address or the call fails, with ZeroMemory what is new is zero. Failing, it leaves the
// block as it is. The address 0 fails with ERROR_SUCCESS.
func (t *Thread) HeapReAlloc(handle uint64, flags uint32, p, size uint64) (uint64, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return 0, noHeap(flags)
	}
	if p == 0 {
		return 0, win32(errorSuccess)
	}
	return h.reallocUser(t, flags, p, size)
}

func (h *object) reallocUser(t *Thread, flags uint32, p, size uint64) (q uint64, err error) {
	err = h.call(t, flags, func() error {
		if q = h.realloc(flags, p, size); q == 0 {
			return h.noMemory(flags)
		}
		return nil
	})
	if err != nil {
		q = 0
	}
	return q, err
}

// realloc is HeapReAlloc on a heap whose header is read; 0 says that there is no memory for it.
func (h *object) realloc(flags uint32, p, size uint64) uint64 {
	b, large := h.busyAt(p)
	if h.tooLarge(size) {
		return 0
	}
	var old, user uint64
	if large != nil {
		old, user = large.size, large.user
	} else {
		old = b.size(h.l)
		if b.e.is(flagExtra) {
			user = h.pointer(b.userValue(h.l))
		}
	}
	if h.inPlace(flags, b, large, size, old, user) {
		if size > old {
			h.finishGrown(flags, p, old, size)
		}
		return p
	}
	if flags&ReallocInPlaceOnly != 0 {
		return 0
	}
	q := h.alloc(flags&^ZeroMemory, size, user)
	if q == 0 {
		return 0
	}
	h.copy(q, p, min(old, size))
	if size > old {
		h.finishGrown(flags, q, old, size)
	}
	h.free(p)
	return q
}

func (h *object) finishGrown(flags uint32, p, old, size uint64) {
	if (uint64(flags)|h.p.flags)&ZeroMemory != 0 {
		h.fill(p+old, size-old, 0)
	}
}

// inPlace changes a block's size where it is, and reports whether it could.
func (h *object) inPlace(flags uint32, b *block, large *largeBlock, size, old, user uint64) bool {
	l := h.l
	if large != nil {
		// One that has become small need not keep 64 KiB of addresses.
		if size < h.p.threshold/2 && flags&ReallocInPlaceOnly == 0 && !large.page {
			return false
		}
		h.checkLarge(large)
		return h.resizeLarge(large, size)
	}
	units := l.units(h.need(size, b.e.is(flagExtra)))
	if units*l.unit > h.p.threshold {
		return false
	}
	if b.sub != nil {
		// A block of the front end has the size of its class. Another class may suit a smaller one better.
		if units > b.e.size || (units < b.e.size/2 && flags&ReallocInPlaceOnly == 0) {
			return false
		}
		unused := b.e.size*l.unit - size
		b.e.seg, b.e.unused = uint8(unused>>8), uint8(unused)
		h.setHeader(b.at, b.e)
	} else if !h.resize(b, units, size) {
		return false
	}
	h.finishTail(b, size, user)
	return true
}
