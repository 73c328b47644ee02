package heap

import "math/bits"

// The front end: the low-fragmentation heap. From its eighteenth allocation on a size class is served from subsegments,
// runs of equal blocks with a bitmap. A block is busy when its bit is set and its own header says so; both are checked.
//
// The table is a block of the back end's: signature, seal, then for each class a list of its subsegments that have free
// blocks, and how many subsegments it has.

// subsegment is the decoded header of a run of equal blocks.
type subsegment struct {
	at    uint64 // of the header: the data of a container block
	class uint64
	count uint64 // blocks
	units uint64 // of each
	first uint64 // address of the first
	free  uint64 // blocks
}

const (
	subFree   = 12 // u16
	subSeal   = 16
	subLink   = 24
	tableHead = 16 // bytes before the classes
	maxBlocks = 512
)

func (h *object) classStride() uint64            { return 2*h.l.ptr + 8 }
func (h *object) bucket(class uint64) uint64     { return h.p.table + tableHead + class*h.classStride() }
func (h *object) subCount(class uint64) uint64   { return h.bucket(class) + 2*h.l.ptr }
func (h *object) subBitmap(s *subsegment) uint64 { return s.at + subLink + 2*h.l.ptr }
func (s *subsegment) bytes(l *layout) uint64     { return s.units * l.unit }

func (h *object) subSealOf(s *subsegment) uint64 {
	return sealOf(h.p.key, h.base, s.at, s.class, s.count, s.units, s.first)
}

// frontEndServes reports whether the heap may use its front end: it grows, is serialised, and no debugging is on.
func (h *object) frontEndServes() bool { return h.p.fixed == 0 && !h.has(NoSerialize|debugFlags) }

// countUse counts an allocation of class and reports whether the front end serves it.
func (h *object) countUse(class uint64) bool {
	at := h.base + h.l.usage + 2*class
	n := h.u16(at)
	if n < lfhActivation {
		n++
		h.put(at, uint64(n), 2)
	}
	return n >= lfhActivation
}

// checkTable checks the front end's table.
func (h *object) checkTable() {
	if h.u32(h.p.table) != frontEndSignature || h.u64(h.p.table+8) != sealOf(h.p.key, h.base, h.p.table) {
		h.fail(h.p.table, "the front end's table")
	}
}

// makeTable gives the heap a front end, and reports whether there was memory for it.
func (h *object) makeTable() bool {
	size := tableHead + lfhClasses*h.classStride()
	units := h.l.units(size)
	b := h.allocate(units, flagBusy|flagContainer, (units*h.l.unit-size)&0xFF)
	if b == 0 {
		return false
	}
	h.p.table = b + h.l.unit
	h.put(h.p.table, frontEndSignature, 4)
	h.put(h.p.table+4, 0, 4)
	h.put(h.p.table+8, sealOf(h.p.key, h.base, h.p.table), 8)
	for class := range uint64(lfhClasses) {
		h.initList(h.bucket(class))
		h.put(h.subCount(class), 0, 8)
	}
	h.p.frontEnd = frontEndLFH
	h.store()
	return true
}

// frontAlloc takes a block of class from a subsegment that has one; 0 says that none has.
func (h *object) frontAlloc(class, size uint64, flags uint8) uint64 {
	if h.p.table == 0 {
		return 0
	}
	h.checkTable()
	head := h.bucket(class)
	node := h.after(head)
	if node == head {
		return 0
	}
	s := h.subsegmentAt(node - subLink)
	if s.class != class || s.free == 0 || s.free > s.count {
		h.fail(s.at, "a subsegment's header")
	}
	i := h.freeBit(s)
	b := s.first + i*s.bytes(h.l)
	e := h.header(b)
	if e.flags != flagLFH || e.prev != i || e.size != s.units {
		h.fail(b, "a free block's header")
	}
	h.setBit(s, i, true)
	h.setFree(s, s.free-1)
	if s.free == 0 {
		h.unlink(s.at + subLink)
	}
	unused := s.bytes(h.l) - size
	h.setHeader(b, entry{s.units, flagBusy | flagLFH | flags, i, uint8(unused >> 8), uint8(unused)})
	return b
}

// addSubsegment gives class another subsegment, and reports whether there was memory for it. The first has 32 blocks
// in 4 KiB, or as many as go there, but two; each further one twice as many, up to 512 in 64 KiB.
func (h *object) addSubsegment(class, bytes uint64) bool {
	l := h.l
	if h.p.table == 0 && !h.makeTable() {
		return false
	}
	h.checkTable()
	n := h.u64(h.subCount(class))
	n = min(n, 4)
	count := min(uint64(32)<<n, max(0x1000<<n/bytes, 2))
	head := alignUp(subLink+2*l.ptr+(count+63)/64*8, l.unit)
	b := h.allocate(l.units(head+count*bytes), flagBusy|flagContainer, 0)
	if b == 0 {
		return false
	}
	s := &subsegment{at: b + l.unit, class: class, count: count, units: bytes / l.unit, first: b + l.unit + head}
	h.put(s.at, subsegmentSignature, 4)
	h.put(s.at+4, class, 2)
	h.put(s.at+6, count, 2)
	h.put(s.at+8, s.units, 2)
	h.put(s.at+10, head, 2)
	h.put(s.at+subSeal, h.subSealOf(s), 8)
	for i := uint64(0); i < count; i += 64 {
		h.put(h.subBitmap(s)+i/8, 0, 8)
	}
	for i := range count {
		h.setHeader(s.first+i*bytes, entry{size: s.units, flags: flagLFH, prev: i})
	}
	h.setFree(s, count)
	h.link(h.bucket(class), s.at+subLink)
	h.put(h.subCount(class), h.u64(h.subCount(class))+1, 8)
	return true
}

func (h *object) setFree(s *subsegment, free uint64) {
	s.free = free
	h.put(s.at+subFree, free|uint64(^uint16(free))<<16, 4)
}

// subsegmentAt reads the header at at.
func (h *object) subsegmentAt(at uint64) *subsegment {
	c := h.read(at, subLink)
	s := &subsegment{at: at, class: le(c[4:6]), count: le(c[6:8]), units: le(c[8:10]), first: at + le(c[10:12]),
		free: le(c[12:14])}
	if le(c[:4]) != subsegmentSignature || le(c[subSeal:]) != h.subSealOf(s) || s.count > maxBlocks ||
		s.class >= lfhClasses || uint16(le(c[14:16])) != ^uint16(s.free) || s.free > s.count {
		h.fail(at, "a subsegment's header")
	}
	return s
}

func (h *object) bit(s *subsegment, i uint64) bool {
	return h.u64(h.subBitmap(s)+i/64*8)>>(i%64)&1 != 0
}

func (h *object) setBit(s *subsegment, i uint64, set bool) {
	at := h.subBitmap(s) + i/64*8
	w := h.u64(at) &^ (1 << (i % 64))
	if set {
		w |= 1 << (i % 64)
	}
	h.put(at, w, 8)
}

// freeBit picks a block that is free, at random as Windows does: what an overrun hits cannot be arranged.
func (h *object) freeBit(s *subsegment) uint64 {
	start := h.heaps.random() % s.count
	words := (s.count + 63) / 64
	for k := range words + 1 {
		w := (start/64 + k) % words
		free := ^h.u64(h.subBitmap(s) + 8*w)
		if rest := s.count - 64*w; rest < 64 {
			free &= 1<<rest - 1
		}
		if k == 0 {
			free &^= 1<<(start%64) - 1
		}
		if free != 0 {
			return 64*w + uint64(bits.TrailingZeros64(free))
		}
	}
	h.fail(s.at, "a subsegment's bitmap")
	return 0
}

// subsegmentOf finds the subsegment of the block at b, whose header is e.
func (h *object) subsegmentOf(b uint64, e entry) *subsegment {
	size := e.size * h.l.unit
	at := b - e.prev*size
	// The header is before the first block, as far as the number of blocks has the bitmap reach; its seal says where.
	for words := uint64(1); words <= maxBlocks/64; words++ {
		s := at - alignUp(subLink+2*h.l.ptr+8*words, h.l.unit)
		if h.u32(s) != subsegmentSignature {
			continue
		}
		sub := h.subsegmentAt(s)
		if sub.first != at || sub.units != e.size || e.prev >= sub.count {
			h.fail(b, "a block outside its subsegment")
		}
		return sub
	}
	h.fail(b, "a block outside any subsegment")
	return nil
}

// frontFree frees the busy block at b. With mayRelease a subsegment left without busy blocks goes back to the back end,
// unless it is the only one of its class with free blocks.
func (h *object) frontFree(s *subsegment, b uint64, e entry, mayRelease bool) {
	h.checkTable()
	h.setHeader(b, entry{size: s.units, flags: flagLFH, prev: e.prev})
	h.setBit(s, e.prev, false)
	h.setFree(s, s.free+1)
	head := h.bucket(s.class)
	if s.free == 1 {
		h.linkLast(head, s.at+subLink)
	}
	if mayRelease && s.free == s.count && h.after(h.after(head)) != head {
		h.dropSubsegment(s)
	}
}

// dropSubsegment gives a subsegment without busy blocks back to the back end.
func (h *object) dropSubsegment(s *subsegment) {
	h.unlink(s.at + subLink)
	n := h.u64(h.subCount(s.class))
	h.put(h.subCount(s.class), n-min(n, 1), 8)
	b := s.at - h.l.unit
	e := h.header(b)
	if !e.is(flagBusy | flagContainer) {
		h.fail(b, "a block's header")
	}
	seg := h.segmentOf(b, e.seg)
	h.checkBlock(&seg, b, e)
	h.put(s.at, 0, 8)
	h.release(&seg, b, e)
}
