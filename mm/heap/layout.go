package heap

import "math/bits"

// Flags of HeapCreate, HeapAlloc and their kin (HEAP_).
const (
	NoSerialize         = 0x1
	Growable            = 0x2 // HEAP_GROWABLE: of a heap without a maximum; not taken from callers
	GenerateExceptions  = 0x4
	ZeroMemory          = 0x8
	ReallocInPlaceOnly  = 0x10
	TailChecking        = 0x20 // HEAP_TAIL_CHECKING_ENABLED
	FreeChecking        = 0x40 // HEAP_FREE_CHECKING_ENABLED
	CreateEnableExecute = 0x40000

	PageAllocs  = 0x01000000 // each block against a guard page
	ValidateAll = 0x20000000 // the whole heap, before every call

	createFlags = NoSerialize | GenerateExceptions | TailChecking | FreeChecking | CreateEnableExecute
	debugFlags  = TailChecking | FreeChecking | PageAllocs | ValidateAll
)

// The flags of gflags that concern heaps, with what gflags calls them.
const (
	GlobalFlagTailCheck          = 0x10       // htc: a fill behind each block that must not change
	GlobalFlagFreeCheck          = 0x20       // hfc: a fill in free blocks that must not change
	GlobalFlagValidateParameters = 0x40       // hpc: both
	GlobalFlagValidateAll        = 0x80       // hvc: both, and the whole heap is checked at every call
	GlobalFlagPageAllocs         = 0x02000000 // hpa: each block against a page that is not there
)

// Sizes, in bytes unless said otherwise.
const (
	granularity        = 0x10000 // of reservations
	defaultHeapReserve = 0x100000
	defaultHeapCommit  = 0x1000
	maxUnits           = 0xFE00   // the largest block of a segment, in units
	firstGrowth        = 0x100000 // the second segment; each further one is twice as large
	maxSegment         = 0xFD0000
	commitStep         = 0x4000  // a segment grows by at least this
	decommitThreshold  = 0x20000 // a free run this long gives pages back
	decommitKeep       = 0x8000  // and keeps this much, so that a block that comes and goes stays cheap
	compactThreshold   = 0x4000  // the same for HeapCompact, which keeps nothing
	quarantineSlots    = 32      // freed page-heap blocks whose addresses stay unused
	handleTableEntries = 65536

	freeLists        = 84
	lfhClasses       = 145 // with class 0, which nothing is in
	lfhMaxBlock      = 0x4000
	lfhActivation    = 18 // this allocation of a size is the first that the front end serves
	largeRegionIndex = 64
)

// Signatures and fills are NT's.
const (
	segmentSignature    = 0xFFEEFFEE
	heapSignature       = 0xEEFFEEFF
	subsegmentSignature = 0xF0E0D0C0
	frontEndSignature   = 0x4C46484C // ours: LFHL

	tailFill  = 0xAB
	pageFill  = 0xD0
	allocFill = 0xBAADF00D
	freeFill  = 0xFEEEFEEE
)

// HeapCompatibilityInformation's values.
const (
	frontEndStandard = 0
	frontEndLFH      = 2
)

// Flags in a block's header.
const (
	flagBusy      = 0x01
	flagExtra     = 0x02 // the last pointer of the block is its user value
	flagLarge     = 0x08 // straight from the space
	flagUCR       = 0x10 // ends a committed run and describes the uncommitted range behind it
	flagPage      = 0x20 // of the page heap
	flagContainer = 0x40 // the heap's own: a subsegment or the front end's table
	flagLFH       = 0x80 // in a subsegment
)

// layout is where things are, for one pointer size. Offsets are in bytes from the structure's beginning.
type layout struct {
	ptr  uint64 // 4 or 8
	unit uint64 // blocks are multiples of this: two pointers
	page uint64

	// Segment header; segment 0's is the beginning of the heap's.
	segSignature, segIndex, segLink, segHeap, segPages, segFirst, segSeal, segUncommitted, segSize uint64

	// Heap header. From sealed to seal nothing changes but when a segment or a large block comes or goes.
	// object.load has what is between.
	sealed, seal uint64

	segHead, largeHead, ucrHead, ringNext, ring, usage, bitmap, lists, heapSize uint64

	ucrSize   uint64 // bytes of the block that ends a committed run
	largeSize uint64 // bytes before a large block's data
	pageSize  uint64 // bytes of a page-heap block's header
}

func newLayout(ptr, page uint64) *layout {
	l := &layout{ptr: ptr, unit: 2 * ptr, page: page}
	l.segSignature = l.unit
	l.segIndex = l.unit + 4
	l.segLink = l.unit + 8
	l.segHeap = l.segLink + 2*ptr
	l.segPages = l.segHeap + ptr
	l.segFirst = l.segPages + 8
	l.segSeal = l.segFirst + ptr
	l.segUncommitted = l.segSeal + 8
	l.segSize, l.sealed = 0x70, 0x70
	if ptr == 4 {
		l.segSize, l.sealed = 0x40, 0x40
	}
	l.seal = l.sealed + 72
	l.segHead = l.seal + 8
	l.largeHead = l.segHead + 2*ptr
	l.ucrHead = l.largeHead + 2*ptr
	l.ringNext = l.ucrHead + 2*ptr
	l.ring = l.ringNext + 8
	l.usage = l.ring + 8*quarantineSlots
	l.bitmap = alignUp(l.usage+2*lfhClasses, 8)
	l.lists = l.bitmap + 16
	l.heapSize = alignUp(l.lists+freeLists*2*ptr, l.unit)
	l.ucrSize = 8 * ptr
	l.largeSize = 8 * ptr
	l.pageSize = 10 * ptr
	return l
}

func alignUp(n, to uint64) uint64   { return (n + to - 1) &^ (to - 1) }
func alignDown(n, to uint64) uint64 { return n &^ (to - 1) }

// units is the size of a block whose data is need bytes, in units: its header takes eight bytes of its own (on a 64-bit
// machine the other eight of the sixteen between blocks belong to the block before).
func (l *layout) units(need uint64) uint64 {
	return alignUp(max(need, l.unit)+8, l.unit) / l.unit
}

// capacity is how many bytes of data a block of that many units has room for.
func (l *layout) capacity(units uint64) uint64 { return units*l.unit - 8 }

// listOf is the free list of blocks of that many units: one for each size below 64, then two for each power of two.
func listOf(units uint64) uint64 {
	if units < 64 {
		return units
	}
	k := uint64(bits.Len64(units) - 1)
	return 64 + (k-6)*2 + units>>(k-1)&1
}

// classOf is the size class of a block of size bytes in the front end, 1 to 144, and the bytes a block of it has; 0 if it
// is too large. Steps are one unit up to 64 units and a 16th of the power of two from there, up to 16 KiB.
func (l *layout) classOf(size uint64) (class, block uint64) {
	if size > lfhMaxBlock {
		return 0, 0
	}
	limit, step, class := 64*l.unit, l.unit, uint64(0)
	if size <= limit {
		return size / step, size
	}
	for class = 64; ; class += 16 {
		step = limit / 16
		if size <= 2*limit {
			n := (size - limit + step - 1) / step
			return class + n, limit + n*step
		}
		limit *= 2
	}
}

// entry is a decoded block header:
//
//	bits  0-15  Size          of the block in units; of a large block, how many of its committed bytes are not data
//	     16-23  Flags
//	     24-31  Checksum      the exclusive or of all eight bytes is zero
//	     32-47  PreviousSize  units of the block before, 0 for the first of a committed run; in a subsegment the index
//	     48-55  SegmentOffset 0 in segment 0, else 1 + 64 KiB steps to the segment; in a subsegment UnusedBytes' high byte
//	     56-63  UnusedBytes   of the block's size, header included, how many are not data
type entry struct {
	size   uint64
	flags  uint8
	prev   uint64
	seg    uint8
	unused uint8
}

func fold(w uint64) uint8 {
	w ^= w >> 32
	w ^= w >> 16
	return uint8(w ^ w>>8)
}

func (e entry) word() uint64 {
	w := e.size | uint64(e.flags)<<16 | e.prev<<32 | uint64(e.seg)<<48 | uint64(e.unused)<<56
	return w | uint64(fold(w))<<24
}

func unpack(w uint64) (e entry, ok bool) {
	e = entry{w & 0xFFFF, uint8(w >> 16), w >> 32 & 0xFFFF, uint8(w >> 48), uint8(w >> 56)}
	return e, fold(w) == 0
}

func (e entry) is(flags uint8) bool { return e.flags&flags == flags }

// sealOf is a hash of words: a change of any one word always changes it.
func sealOf(words ...uint64) uint64 {
	x := uint64(0x9E3779B97F4A7C15)
	for _, w := range words {
		x = (x ^ w) * 0x9E3779B97F4A7C15
		x ^= x >> 29
	}
	return x
}
