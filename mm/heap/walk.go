package heap

import "errors"

// Flags of a ProcessHeapEntry (PROCESS_HEAP_); a free block has none.
const (
	EntryRegion           = 0x01
	EntryUncommittedRange = 0x02
	EntryBusy             = 0x04
	EntryMoveable         = 0x10
)

// ProcessHeapEntry is one thing that HeapWalk comes by: PROCESS_HEAP_ENTRY. Addresses and sizes are in bytes.
type ProcessHeapEntry struct {
	Data        uint64 // lpData: of the data, or of the region or range
	Size        uint64 // cbData: of the data
	Overhead    uint8  // cbOverhead
	RegionIndex uint8  // iRegionIndex, at most 63; 64 for a block that is a reservation of its own
	Flags       uint16 // wFlags

	Mem uint64 // Block.hMem: the handle of a movable block

	Committed   uint64 // Region.dwCommittedSize
	Uncommitted uint64 // Region.dwUnCommittedSize
	FirstBlock  uint64 // Region.lpFirstBlock
	LastBlock   uint64 // Region.lpLastBlock: the end
}

// HeapWalk answers with what comes behind entry in the heap, and with the first region when its Data is 0. A region comes
// before its blocks and uncommitted ranges, which come in order of address; blocks that are reservations of their own
// come last. The end is ERROR_NO_MORE_ITEMS; an entry that is no longer there is ERROR_INVALID_PARAMETER. Hold the
// HeapLock over a walk.
func (t *Thread) HeapWalk(handle uint64, entry *ProcessHeapEntry) (bool, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return false, win32(errorInvalidHandle)
	}
	err := h.call(t, 0, func() (err error) {
		*entry, err = h.walk(entry)
		return err
	})
	return err == nil, err
}

func (h *object) walk(e *ProcessHeapEntry) (ProcessHeapEntry, error) {
	if e.Data == 0 {
		s := h.segmentAt(h.base)
		return h.regionEntry(&s), nil
	}
	at, err := h.position(e)
	if isCorruption(err) {
		err = win32(errorInvalidParameter)
	}
	switch {
	case err != nil:
		return *e, err
	case at.sub != nil:
		return h.frontEntry(at.sub, at.index), nil
	case at.seg.size == 0:
		return h.largeEntryAt(at.node)
	case at.block == at.seg.end():
		return h.nextRegion(&at.seg)
	}
	return h.entryAt(&at.seg, at.block)
}

// Walk calls f for everything that HeapWalk comes by, in that order, until f returns false. The heap does not change
// meanwhile: f may make no calls on it.
func (t *Thread) Walk(handle uint64, f func(*ProcessHeapEntry) bool) error {
	h := t.heaps.find(handle)
	if h == nil {
		return win32(errorInvalidHandle)
	}
	return h.call(t, NoSerialize, func() error {
		var e ProcessHeapEntry
		for {
			next, err := h.walk(&e)
			var last *Error
			switch {
			case errors.As(err, &last) && last.Code == errorNoMoreItems:
				return nil
			case err != nil:
				return err
			case !f(&next):
				return nil
			}
			e = next
		}
	})
}

// position is where a walk goes on: at a block of a subsegment, at a block of a segment or its end, or else at a node of
// the list of large blocks.
type position struct {
	sub   *subsegment
	index uint64
	seg   segment
	block uint64
	node  uint64
}

// position finds what comes behind an entry, which may long be gone.
func (h *object) position(e *ProcessHeapEntry) (at position, err error) {
	defer h.catch(&err)
	l := h.l
	switch {
	case e.Flags&EntryRegion != 0:
		at.seg = h.segmentAt(e.Data)
		at.block = at.seg.first
	case e.Flags&EntryUncommittedRange != 0:
		s, ok := h.segmentHolding(e.Data)
		if !ok || e.Size > s.end()-e.Data {
			return at, win32(errorInvalidParameter)
		}
		at.seg, at.block = s, e.Data+e.Size
	case e.RegionIndex == largeRegionIndex:
		_, b := h.busyAt(e.Data)
		if b == nil {
			return at, win32(errorInvalidParameter)
		}
		at.node = h.after(b.base)
	case e.Flags == 0 && uint64(e.Overhead) == 2*l.unit:
		h.behind(&at, e.Data-2*l.unit)
	default:
		h.behind(&at, e.Data-l.unit)
	}
	return at, nil
}

// behind sets at to what comes behind the block at b.
func (h *object) behind(at *position, b uint64) {
	e := h.header(b)
	if e.is(flagLFH) {
		sub := h.subsegmentOf(b, e)
		if e.prev+1 < sub.count {
			at.sub, at.index = sub, e.prev+1
			return
		}
		b = sub.at - h.l.unit
		e = h.header(b)
	}
	at.seg = h.segmentOf(b, e.seg)
	h.checkBlock(&at.seg, b, e)
	at.block = b + e.size*h.l.unit
}

// entryAt is the first entry from the block at b on.
func (h *object) entryAt(s *segment, b uint64) (ProcessHeapEntry, error) {
	l := h.l
	for {
		e := h.header(b)
		switch {
		case e.is(flagUCR):
			u := h.ucrAt(b, e)
			if u.size > s.end()-min(u.addr, s.end()) {
				h.fail(b, "the end of a committed run")
			}
			if u.size == 0 {
				return h.nextRegion(s)
			}
			return ProcessHeapEntry{Data: u.addr, Size: u.size, RegionIndex: regionIndex(s),
				Flags: EntryUncommittedRange}, nil
		case !e.is(flagBusy):
			h.checkFree(s, b, e)
			return ProcessHeapEntry{Data: b + 2*l.unit, Size: (e.size - 2) * l.unit, Overhead: uint8(2 * l.unit),
				RegionIndex: regionIndex(s)}, nil
		case e.is(flagContainer):
			h.checkBlock(s, b, e)
			if h.u32(b+l.unit) == subsegmentSignature {
				return h.frontEntry(h.subsegmentAt(b+l.unit), 0), nil
			}
			b += e.size * l.unit // the front end's table is nobody's block
		default:
			busy, _ := h.busyAt(b + l.unit)
			return h.busyEntry(busy, regionIndex(s)), nil
		}
	}
}

func regionIndex(s *segment) uint8 { return uint8(min(s.index, largeRegionIndex-1)) }

func (h *object) busyEntry(b *block, region uint8) ProcessHeapEntry {
	e := ProcessHeapEntry{Data: b.data(h.l), Size: b.size(h.l), Overhead: uint8(min(b.unused(), 0xFF)), RegionIndex: region,
		Flags: EntryBusy}
	if b.e.is(flagExtra) {
		e.Flags |= EntryMoveable
		e.Mem = h.pointer(b.userValue(h.l))
	}
	return e
}

// frontEntry is the entry of block i of a subsegment.
func (h *object) frontEntry(sub *subsegment, i uint64) ProcessHeapEntry {
	l := h.l
	c := h.header(sub.at - l.unit)
	s := h.segmentOf(sub.at-l.unit, c.seg)
	b := sub.first + i*sub.bytes(l)
	e := h.header(b)
	if !e.is(flagLFH) || e.prev != i || e.size != sub.units || e.is(flagBusy) != h.bit(sub, i) {
		h.fail(b, "a block's header")
	}
	if e.is(flagBusy) {
		return h.busyEntry(&block{at: b, e: e, sub: sub}, regionIndex(&s))
	}
	return ProcessHeapEntry{Data: b + l.unit, Size: sub.bytes(l) - l.unit, Overhead: uint8(l.unit),
		RegionIndex: regionIndex(&s)}
}

func (h *object) nextRegion(s *segment) (ProcessHeapEntry, error) {
	if next, ok := h.nextSegment(s); ok {
		return h.regionEntry(&next), nil
	}
	return h.largeEntryAt(h.after(h.base + h.l.largeHead))
}

func (h *object) regionEntry(s *segment) ProcessHeapEntry {
	uncommitted := uint64(h.u32(s.base+h.l.segUncommitted)) * h.l.page
	return ProcessHeapEntry{Data: s.base, Size: s.first - s.base, RegionIndex: regionIndex(s), Flags: EntryRegion,
		Committed: s.size - uncommitted, Uncommitted: uncommitted, FirstBlock: s.first + h.l.unit, LastBlock: s.end()}
}

func (h *object) largeEntryAt(node uint64) (ProcessHeapEntry, error) {
	if node == h.base+h.l.largeHead {
		return ProcessHeapEntry{}, win32(errorNoMoreItems)
	}
	b := h.largeAt(node)
	e := ProcessHeapEntry{Data: b.data, Size: b.size, RegionIndex: largeRegionIndex, Flags: EntryBusy}
	if b.extra {
		e.Flags |= EntryMoveable
		e.Mem = b.user
	}
	return e, nil
}

// segmentHolding finds the segment that addr is in.
func (h *object) segmentHolding(addr uint64) (segment, bool) {
	s, ok := h.segmentAt(h.base), true
	for ok && (addr < s.base || addr >= s.end()) {
		s, ok = h.nextSegment(&s)
	}
	return s, ok
}

func isCorruption(err error) bool {
	var e *Exception
	return errors.As(err, &e) && e.Status == StatusHeapCorruption
}

// HeapValidate reports whether the block whose data is at p, or the whole heap if p is 0, is as the heap left it. The
// last error stays as it was.
func (t *Thread) HeapValidate(handle uint64, flags uint32, p uint64) (bool, error) {
	h := t.heaps.find(handle)
	if h == nil {
		return false, win32(errorInvalidHandle)
	}
	err := h.call(t, flags, func() error {
		if p == 0 {
			h.check()
			return nil
		}
		if _, large := h.busyAt(p); large != nil {
			h.checkLarge(large)
		}
		return nil
	})
	if !isCorruption(err) {
		return err == nil, err
	}
	return false, nil
}

// HeapCompact gives whole pages of free blocks back to the space, empty subsegments to the back end, and returns the
// size in bytes of the largest block that can be allocated without committing more.
func (t *Thread) HeapCompact(handle uint64, flags uint32) (largest uint64, err error) {
	h := t.heaps.find(handle)
	if h == nil {
		return 0, win32(errorInvalidHandle)
	}
	err = h.call(t, flags, func() error {
		largest = h.compact()
		return nil
	})
	return largest, err
}

func (h *object) compact() (largest uint64) {
	for _, s := range h.emptySubsegments() {
		h.dropSubsegment(s)
	}
	s := h.segmentAt(h.base)
	for more := true; more; {
		h.compactSegment(&s)
		s, more = h.nextSegment(&s)
	}
	for i := uint64(freeLists); i > 0 && largest == 0; i-- {
		head := h.list(i - 1)
		for node := h.after(head); node != head; node = h.after(node) {
			largest = max(largest, h.header(node-h.l.unit).size)
		}
	}
	if largest == 0 {
		return 0
	}
	return h.l.capacity(largest)
}

func (h *object) emptySubsegments() (empty []*subsegment) {
	if h.p.table == 0 {
		return nil
	}
	h.checkTable()
	for class := range uint64(lfhClasses) {
		head := h.bucket(class)
		for node := h.after(head); node != head; node = h.after(node) {
			if s := h.subsegmentAt(node - subLink); s.free == s.count {
				empty = append(empty, s)
			}
		}
	}
	return empty
}

func (h *object) compactSegment(s *segment) {
	l := h.l
	for b := s.first; b < s.end(); {
		e := h.header(b)
		if e.is(flagUCR) {
			u := h.ucrAt(b, e)
			b = u.addr + u.size
			continue
		}
		h.checkBlock(s, b, e)
		next := b + e.size*l.unit
		if !e.is(flagBusy) && e.size*l.unit >= compactThreshold {
			h.checkFree(s, b, e)
			h.removeFree(b, e.size)
			start, n, prev := h.gather(s, b, e.size, e.prev)
			rest, ok := h.decommit(s, start, n, prev, 0)
			if next = rest; !ok {
				h.insertRun(s, start, n, prev)
				next = start + n*l.unit
			}
		}
		b = next
	}
}

// Summary is HEAP_SUMMARY. All are bytes.
type Summary struct {
	Allocated  uint64 // cbAllocated: what busy blocks were asked for
	Committed  uint64
	Reserved   uint64
	MaxReserve uint64 // of a heap that does not grow, else 0
}

// HeapSummary sums up a heap. size is the caller's cb, bytes: 40 on a 64-bit machine, 20 on a 32-bit one.
func (t *Thread) HeapSummary(handle uint64, flags uint32, size uint64) (sum Summary, err error) {
	h := t.heaps.find(handle)
	if h == nil {
		return sum, win32(errorInvalidHandle)
	}
	if size != 5*h.l.ptr {
		return sum, win32(errorInvalidParameter)
	}
	err = h.call(t, flags, func() error {
		r := h.report()
		sum = Summary{r.BusyBytes, r.Committed, r.Reserved, h.p.fixed}
		return nil
	})
	return sum, err
}

// Classes of HeapQueryInformation and HeapSetInformation.
const (
	HeapCompatibilityInformation      = 0
	HeapEnableTerminationOnCorruption = 1
	HeapOptimizeResources             = 3
)

// HeapQueryInformation answers class HeapCompatibilityInformation: 0 for a standard heap, 2 once it has its
// low-fragmentation front end. size is the caller's buffer, bytes; length is what it takes.
func (t *Thread) HeapQueryInformation(handle uint64, class uint32, size uint64) (value uint32, length uint64, err error) {
	if class != HeapCompatibilityInformation {
		return 0, 0, win32(errorInvalidParameter)
	}
	h := t.heaps.find(handle)
	if h == nil {
		return 0, 0, win32(errorNoAccess)
	}
	if size < 4 {
		return 0, 4, win32(errorInsufficientBuffer)
	}
	err = h.call(t, 0, func() error {
		value = h.p.frontEnd
		return nil
	})
	return value, 4, err
}

// HeapSetInformation sets class HeapCompatibilityInformation to 2, which is not undone (ERROR_GEN_FAILURE); class
// HeapEnableTerminationOnCorruption, for all heaps and for good, whatever the handle; or does
// HeapOptimizeResources: HeapCompact of one heap, or of all if the handle is 0.
func (t *Thread) HeapSetInformation(handle uint64, class uint32, value uint32) (bool, error) {
	switch class {
	case HeapEnableTerminationOnCorruption:
		t.heaps.terminate.Store(true)
		return true, nil
	case HeapOptimizeResources:
		return t.optimize(handle)
	case HeapCompatibilityInformation:
	default:
		return false, win32(errorInvalidParameter)
	}
	h := t.heaps.find(handle)
	if h == nil {
		return false, win32(errorInvalidHandle)
	}
	err := h.call(t, 0, func() error { return h.setCompatibility(value) })
	return err == nil, err
}

func (h *object) setCompatibility(value uint32) error {
	switch {
	case value > frontEndLFH || h.has(NoSerialize):
		return win32(errorInvalidParameter)
	case value == h.p.frontEnd:
	case value != frontEndLFH || !h.frontEndServes():
		return win32(errorGenFailure)
	default:
		h.p.frontEnd = frontEndLFH
		h.store()
	}
	return nil
}

func (t *Thread) optimize(handle uint64) (bool, error) {
	handles := []uint64{handle}
	if handle == 0 {
		handles = t.GetProcessHeaps()
	}
	for _, handle := range handles {
		if _, err := t.HeapCompact(handle, 0); err != nil {
			return false, err
		}
	}
	return true, nil
}

// isUnreadable reports whether err is a corruption that showed as an access violation of the heap itself.
func isUnreadable(err error) bool { return isCorruption(err) && errors.Is(err, ErrAccess) }
