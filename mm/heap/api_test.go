package heap

import (
	"context"
	"errors"
	"testing"
	"time"
)

// win32Error fails unless err is the Win32 error code, or nil for 0xdeadbeef.
func win32Error(t *testing.T, what string, err error, code uint32) {
	t.Helper()
	if code == 0xdeadbeef {
		if err != nil {
			t.Errorf("%s: %v; want the last error left alone", what, err)
		}
	} else if !errors.Is(err, win32(code)) {
		t.Errorf("%s: %v; want error %d", what, err, code)
	}
}

func mustAlloc(t *testing.T, thread *Thread, h, size uint64) uint64 {
	t.Helper()
	p, err := thread.HeapAlloc(h, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBlockLayout is what Windows programs can see of where blocks lie (Wine: kernel32/tests/heap.c, test_block_layout).
func TestBlockLayout(t *testing.T) {
	for _, ptr := range []uint64{4, 8} {
		_, thread := heapOf(t, int(ptr), Options{})
		h, _ := thread.HeapCreate(0, 0, 0)
		for _, size := range []uint64{2 * ptr, 4*ptr - 8, 4*ptr + 1, 100, 513, 4096} {
			p, q := mustAlloc(t, thread, h, size), mustAlloc(t, thread, h, size)
			if want := alignUp(max(size, 2*ptr)+8, 2*ptr); q-p != want {
				t.Errorf("%d-bit: blocks of %d bytes are %d apart, want %d", 8*ptr, size, q-p, want)
			}
		}
		for _, c := range []struct {
			size  uint64
			large bool
		}{{0x20000*ptr - 0x3000, false}, {0x20000*ptr - 0x1000, true}, {0x40000 * ptr, true}} {
			p := mustAlloc(t, thread, h, c.size)
			if large := p%granularity == 8*ptr; large != c.large {
				t.Errorf("%d-bit: the block of %#x bytes at %#x is a reservation of its own: %v", 8*ptr, c.size, p, large)
			}
			if c.large && (p%(8*ptr) != 0 || p&(8*ptr) == 0) {
				t.Errorf("%d-bit: large block at %#x", 8*ptr, p)
			}
		}
	}
}

func TestFixedHeapLimits(t *testing.T) {
	for _, ptr := range []uint64{4, 8} {
		_, thread := heapOf(t, int(ptr), Options{})
		size := 0x8000 * ptr
		h, _ := thread.HeapCreate(0, size, size)
		p, err := thread.HeapAlloc(h, 0, size-(0x400+0x100*ptr))
		if err != nil {
			t.Errorf("%d-bit: the fixed heap's structures take too much: %v", 8*ptr, err)
		}
		thread.HeapFree(h, 0, p)
		_, err = thread.HeapAlloc(h, 0, size-(0x200+0x80*ptr))
		win32Error(t, "a block as large as the heap", err, errorNotEnoughMemory)
	}
}

func TestSegmentsDouble(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	h, _ := thread.HeapCreate(0, 0, 0)
	want := []uint64{0x10000, 0x100000, 0x200000, 0x400000, 0x800000, 0xFD0000, 0xFD0000}
	var blocks []uint64
	for len(blocks) < 800 {
		blocks = append(blocks, mustAlloc(t, thread, h, 0xF000))
	}
	var got []uint64
	var e ProcessHeapEntry
	for {
		if ok, _ := thread.HeapWalk(h, &e); !ok {
			break
		}
		if e.Flags&EntryRegion != 0 {
			got = append(got, e.Committed+e.Uncommitted)
		}
	}
	for i, n := range got {
		if i < len(want) && n != want[i] {
			t.Errorf("segment %d has %#x bytes, want %#x", i, n, want[i])
		}
	}
	if len(got) < 5 {
		t.Errorf("%d segments for 48 MiB", len(got))
	}
	for _, p := range blocks {
		thread.HeapFree(h, 0, p)
	}
	r, err := thread.Report(h)
	if err != nil || r.Segments != 1 || r.Committed > 0x20000 {
		t.Errorf("an empty heap keeps %d segments and %#x committed bytes, %v", r.Segments, r.Committed, err)
	}
	if ok, err := thread.HeapDestroy(h); !ok {
		t.Error(err)
	}
	if _, _, n := space.region(0); n != 1 {
		t.Errorf("%d reservations are left", n)
	}
}

func TestFrontEnd(t *testing.T) {
	_, thread := heapOf(t, 8, Options{})
	compat := func(h uint64) uint32 {
		v, n, err := thread.HeapQueryInformation(h, HeapCompatibilityInformation, 5)
		if err != nil || n != 4 {
			t.Errorf("HeapQueryInformation: length %d, %v", n, err)
		}
		return v
	}
	h, _ := thread.HeapCreate(0, 0, 0)
	var blocks []uint64
	for i := range 200 {
		if v := compat(h); (v == 2) != (i >= lfhActivation) {
			t.Errorf("compatibility is %d after %d allocations", v, i)
		}
		blocks = append(blocks, mustAlloc(t, thread, h, 40))
	}
	r, err := thread.Report(h)
	if err != nil || len(r.Buckets) != 1 || r.Buckets[0].BlockSize != 48 || r.Buckets[0].Busy != 200-lfhActivation+1 {
		t.Errorf("buckets %+v, %v", r.Buckets, err)
	}
	p := blocks[100]
	for size := range uint64(41) {
		if size >= 16 && size != 40 {
			continue
		}
		if q, err := thread.HeapReAlloc(h, ReallocInPlaceOnly, p, size); q != p {
			t.Errorf("a block of the front end cannot have %d bytes where it is: %v", size, err)
		}
		if n, _ := thread.HeapSize(h, 0, p); n != size {
			t.Errorf("its size is %d, want %d", n, size)
		}
	}
	_, err = thread.HeapReAlloc(h, ReallocInPlaceOnly, p, 41)
	win32Error(t, "growing beyond the class in place", err, errorNotEnoughMemory)
	for _, p := range blocks {
		if ok, err := thread.HeapFree(h, 0, p); !ok {
			t.Fatal(err)
		}
	}
	if _, err := thread.HeapCompact(h, 0); err != nil {
		t.Error(err)
	}
	if r, _ := thread.Report(h); len(r.Buckets) != 0 {
		t.Errorf("buckets after HeapCompact of an empty heap: %+v", r.Buckets)
	}
	plain, _ := thread.HeapCreate(NoSerialize, 0, 0)
	for range 50 {
		mustAlloc(t, thread, plain, 40)
	}
	_, err = thread.HeapSetInformation(plain, HeapCompatibilityInformation, 2)
	win32Error(t, "the front end on a heap that is not serialised", err, errorInvalidParameter)
	if v := compat(plain); v != 0 {
		t.Errorf("compatibility of a heap that is not serialised is %d", v)
	}
}

func TestLargeSizesOfTheFrontEnd(t *testing.T) {
	for _, ptr := range []int{4, 8} {
		l := newLayout(uint64(ptr), fakePage)
		last := uint64(0)
		for size := 2 * l.unit; size <= lfhMaxBlock; size += l.unit {
			class, block := l.classOf(size)
			fits := block >= size && block <= size+size/16+l.unit && block%l.unit == 0
			if class == 0 || class >= lfhClasses || !fits || class < last {
				t.Fatalf("%d-bit: %d bytes are class %d of %d bytes", 8*ptr, size, class, block)
			}
			last = class
			if again, b := l.classOf(block); again != class || b != block {
				t.Fatalf("%d-bit: class %d has blocks of %d bytes, which are class %d", 8*ptr, class, block, again)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	_, thread := heapOf(t, 8, Options{})
	h := thread.GetProcessHeap()
	ok, err := thread.HeapFree(0, 0, 0)
	if !ok {
		t.Error("HeapFree(NULL, 0, NULL) fails")
	}
	win32Error(t, "HeapFree of NULL", err, 0xdeadbeef)
	p, err := thread.HeapReAlloc(h, 0, 0, 1)
	win32Error(t, "HeapReAlloc of NULL", err, errorSuccess)
	if p != 0 {
		t.Error("HeapReAlloc of NULL succeeds")
	}
	ok, err = thread.HeapDestroy(h)
	win32Error(t, "HeapDestroy of the default heap", err, errorInvalidHandle)
	if ok {
		t.Error("the default heap was destroyed")
	}
	_, _, err = thread.HeapQueryInformation(0, HeapCompatibilityInformation, 4)
	win32Error(t, "HeapQueryInformation of NULL", err, errorNoAccess)
	_, n, err := thread.HeapQueryInformation(h, HeapCompatibilityInformation, 0)
	win32Error(t, "HeapQueryInformation without a buffer", err, errorInsufficientBuffer)
	if n != 4 {
		t.Errorf("it says that it needs %d bytes", n)
	}
	_, err = thread.HeapSummary(h, 0, 39)
	win32Error(t, "HeapSummary with a wrong cb", err, errorInvalidParameter)
	small := mustAlloc(t, thread, h, 10)
	for _, size := range []uint64{^uint64(0), ^uint64(0) - 7, 1 << 63} {
		_, err = thread.HeapAlloc(h, 0, size)
		win32Error(t, "HeapAlloc of everything", err, errorNotEnoughMemory)
		_, err = thread.HeapReAlloc(h, 0, small, size)
		win32Error(t, "HeapReAlloc to everything", err, errorNotEnoughMemory)
		_, err = thread.HeapAlloc(h, GenerateExceptions, size)
		raised(t, "HeapAlloc of everything with exceptions", err, StatusNoMemory)
	}
	_, err = thread.HeapAlloc(h+0x10000, GenerateExceptions, 1)
	raised(t, "HeapAlloc from no heap with exceptions", err, StatusAccessViolation)
	raising, _ := thread.HeapCreate(GenerateExceptions, 0, 0x10000)
	_, err = thread.HeapAlloc(raising, 0, 0x20000)
	raised(t, "HeapAlloc from a full heap created with exceptions", err, StatusNoMemory)
	sum, err := thread.HeapSummary(h, 0, 40)
	if err != nil || sum.Allocated != 10 || sum.Reserved != defaultHeapReserve || sum.MaxReserve != 0 {
		t.Errorf("HeapSummary is %+v, %v", sum, err)
	}
	// A large block that has shrunk has no pages to grow into.
	large := mustAlloc(t, thread, h, 1<<20)
	if q, err := thread.HeapReAlloc(h, ReallocInPlaceOnly, large, 0x60000); q != large {
		t.Error(err)
	}
	_, err = thread.HeapReAlloc(h, ReallocInPlaceOnly, large, 0x80000)
	win32Error(t, "growing a shrunk large block in place", err, errorNotEnoughMemory)
}

func raised(t *testing.T, what string, err error, status uint32) {
	t.Helper()
	var e *Exception
	if !errors.As(err, &e) || e.Status != status {
		t.Errorf("%s: %v; want exception %#x", what, err, status)
	}
}

func TestExecutable(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	for flags, protect := range map[uint32]uint32{0: PageReadWrite, CreateEnableExecute: PageExecuteReadWrite} {
		h, err := thread.HeapCreate(flags, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		p, large := mustAlloc(t, thread, h, 0x50000), mustAlloc(t, thread, h, 0x200000)
		for _, addr := range []uint64{h, p, large} {
			if got := space.protection(addr); got != protect {
				t.Errorf("flags %#x: %#x has protection %#x, want %#x", flags, addr, got, protect)
			}
		}
	}
}

// soon fails unless done comes.
func soon(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s waits", what)
	}
}

func TestHeapLock(t *testing.T) {
	_, owner := heapOf(t, 8, Options{})
	other := owner.heaps.Thread(context.Background())
	h, _ := owner.HeapCreate(0, 0, 0)
	for range lfhActivation {
		mustAlloc(t, owner, h, 0)
	}
	for range 2 { // it nests
		if ok, err := owner.HeapLock(h); !ok {
			t.Fatal(err)
		}
	}
	_, err := other.HeapUnlock(h)
	win32Error(t, "HeapUnlock by another thread", err, errorNotOwner)
	mustAlloc(t, owner, h, 500)

	// What the front end serves, and what does not serialise, does not wait.
	done := make(chan error)
	go func() {
		p, err := other.HeapAlloc(h, 0, 0)
		if err == nil {
			_, err = other.HeapFree(h, 0, p)
		}
		if err == nil {
			_, err = other.HeapAlloc(h, NoSerialize, 500)
		}
		done <- err
	}()
	soon(t, "the front end", done)

	// All else does, until its context ends or the lock does.
	ctx, cancel := context.WithCancel(context.Background())
	waiter := owner.heaps.Thread(ctx)
	go func() {
		_, err := waiter.HeapAlloc(h, 0, 500)
		done <- err
	}()
	go func() {
		_, err := other.HeapLock(h)
		done <- err
	}()
	owner.HeapUnlock(h)
	select {
	case err := <-done:
		t.Fatalf("a call on a locked heap returned: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a call whose context ended: %v", err)
	}
	owner.HeapUnlock(h)
	soon(t, "HeapLock after HeapUnlock", done)
	_, err = owner.HeapUnlock(h)
	win32Error(t, "HeapUnlock once too often", err, errorNotOwner)
	other.HeapUnlock(h)

	plain, _ := owner.HeapCreate(NoSerialize, 0, 0)
	owner.HeapLock(plain)
	go func() {
		_, err := other.HeapLock(plain)
		done <- err
	}()
	soon(t, "HeapLock of a heap that is not serialised", done)
}

func TestHandles(t *testing.T) {
	for _, ptr := range []int{4, 8} {
		if testing.Short() && ptr == 4 {
			continue
		}
		_, thread := heapOf(t, ptr, Options{})
		var first, last uint64
		for i := range handleTableEntries {
			h, err := thread.LocalAlloc(MemMoveable, 0)
			if err != nil {
				t.Fatalf("handle %d: %v", i, err)
			}
			if first == 0 {
				first = h
			}
			last = h
		}
		_, err := thread.GlobalAlloc(MemMoveable, 1)
		win32Error(t, "one movable block too many", err, errorNotEnoughMemory)
		if p, err := thread.GlobalAlloc(MemFixed, 1); p == 0 {
			t.Errorf("a fixed block: %v", err)
		}
		if left, err := thread.GlobalFree(first); left != 0 {
			t.Error(err)
		}
		if again, err := thread.GlobalAlloc(MemMoveable, 8); again != first {
			t.Errorf("handle %#x after %#x was freed: %v", again, first, err)
		}
		for range 300 {
			if p, err := thread.GlobalLock(first); p == 0 {
				t.Fatal(err)
			}
		}
		if f, _ := thread.GlobalFlags(first); f != maxLockCount {
			t.Errorf("flags %#x after 300 locks", f)
		}
		if left, err := thread.LocalFree(last); left != 0 {
			t.Error(err)
		}
		if _, err := thread.LocalSize(last); !errors.Is(err, win32(errorInvalidHandle)) {
			t.Errorf("size of a freed handle: %v", err)
		}
	}
}

func TestGlobalLocalDifferences(t *testing.T) {
	_, thread := heapOf(t, 8, Options{})
	g, _ := thread.GlobalAlloc(MemFixed, 0)
	l, _ := thread.LocalAlloc(MemFixed, 0)
	gs, _ := thread.GlobalSize(g)
	ls, _ := thread.LocalSize(l)
	if gs != 1 || ls != 0 {
		t.Errorf("fixed blocks of no bytes have %d and %d", gs, ls)
	}
	const bogus, freed = 0xdeadbee0, 0xdeadbee8
	ok, err := thread.GlobalUnlock(bogus)
	if !ok {
		t.Error("GlobalUnlock of a bogus address is false")
	}
	win32Error(t, "GlobalUnlock of a bogus address", err, 0xdeadbeef)
	ok, err = thread.GlobalUnlock(freed)
	if !ok {
		t.Error("GlobalUnlock of a bogus handle is false")
	}
	win32Error(t, "GlobalUnlock of a bogus handle", err, errorInvalidHandle)
	ok, err = thread.LocalUnlock(bogus)
	if ok {
		t.Error("LocalUnlock of a bogus address is true")
	}
	win32Error(t, "LocalUnlock of a bogus address", err, errorNotLocked)
	ok, err = thread.LocalUnlock(freed)
	if ok {
		t.Error("LocalUnlock of a bogus handle is true")
	}
	win32Error(t, "LocalUnlock of a bogus handle", err, errorInvalidHandle)
	_, err = thread.GlobalSize(bogus)
	win32Error(t, "GlobalSize of a bogus address", err, errorInvalidHandle)
	_, err = thread.GlobalHandle(bogus)
	win32Error(t, "GlobalHandle of a bogus address", err, errorInvalidHandle)
	p, err := thread.LocalLock(bogus)
	if p != 0 {
		t.Error("LocalLock of a bogus address")
	}
	win32Error(t, "LocalLock of a bogus address", err, 0xdeadbeef)
	p, err = thread.GlobalFree(bogus)
	if p != bogus {
		t.Error("GlobalFree of a bogus address")
	}
	win32Error(t, "GlobalFree of a bogus address", err, errorNoAccess)

	m, _ := thread.GlobalAlloc(GHND, 100)
	thread.GlobalLock(m)
	if d, _ := thread.GlobalDiscard(m); d != 0 {
		t.Error("a locked block was discarded")
	}
	thread.GlobalUnlock(m)
	if d, err := thread.GlobalDiscard(m); d != m {
		t.Error(err)
	}
	if f, _ := thread.GlobalFlags(m); f != MemDiscarded {
		t.Errorf("flags of a discarded block: %#x", f)
	}
	if d, err := thread.LocalDiscard(l); d != l {
		t.Errorf("LocalDiscard of a fixed block is %#x, %v", d, err)
	}
	if q, err := thread.GlobalReAlloc(m, 50, GHND); q != m {
		t.Error(err)
	}
	if f, _ := thread.GlobalFlags(m); f != 0 {
		t.Errorf("flags of a block that was discarded once: %#x", f)
	}
}

func TestRuntime(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	p, err := thread.Calloc(10, 10)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = thread.Realloc(p, 1000); err != nil {
		t.Fatal(err)
	}
	if n, _ := thread.MSize(p); n != 1000 {
		t.Errorf("_msize is %d", n)
	}
	b := make([]byte, 100)
	if err := space.Read(p, b); err != nil || string(b) != string(make([]byte, 100)) {
		t.Error("calloc's memory is not zero")
	}
	if q, err := thread.Realloc(p, 0); q != 0 || err != nil {
		t.Errorf("realloc to 0 bytes is %#x, %v", q, err)
	}
	_, err = thread.Calloc(1<<33, 1<<33)
	win32Error(t, "calloc of more than there is", err, errorNotEnoughMemory)
	if err := thread.Free(0); err != nil {
		t.Error(err)
	}
	if p, err = thread.Realloc(0, 5); p == 0 {
		t.Error(err)
	}
	if err := thread.Free(p); err != nil {
		t.Error(err)
	}
	if r, _ := thread.Report(thread.GetProcessHeap()); r.BusyBlocks != 0 || !r.Default {
		t.Errorf("report %+v", r)
	}
}

// walked are all entries of a heap.
func walked(t *testing.T, thread *Thread, h uint64) (entries []ProcessHeapEntry) {
	t.Helper()
	var e ProcessHeapEntry
	for {
		ok, err := thread.HeapWalk(h, &e)
		if !ok {
			win32Error(t, "the end of a walk", err, errorNoMoreItems)
			return entries
		}
		entries = append(entries, e)
	}
}

// TestWalkLayout is how entries relate (Wine: kernel32/tests/heap.c, test_HeapCreate).
func TestWalkLayout(t *testing.T) {
	for _, ptr := range []uint64{4, 8} {
		_, thread := heapOf(t, int(ptr), Options{})
		h, _ := thread.HeapCreate(0, 0, 0)
		mustAlloc(t, thread, h, 123)
		mustAlloc(t, thread, h, 456)
		e := walked(t, thread, h)
		if len(e) != 5 {
			t.Fatalf("%d-bit: entries %+v", 8*ptr, e)
		}
		region, first, second, free, rest := e[0], e[1], e[2], e[3], e[4]
		for what, ok := range map[string]bool{
			"region":       region.Data == h && region.Flags == EntryRegion && region.Overhead == 0,
			"its sizes":    region.Committed == 0x400*ptr && region.Committed+region.Uncommitted == 0x10000,
			"first block":  region.FirstBlock == h+region.Size+2*ptr && region.FirstBlock == first.Data,
			"last block":   region.LastBlock == rest.Data+rest.Size,
			"first":        first.Flags == EntryBusy && first.Size == 123 && first.Overhead != 0,
			"second":       second.Flags == EntryBusy && second.Size == 456 && second.Overhead != 0,
			"after second": free.Data == second.Data+second.Size+uint64(second.Overhead)+2*ptr,
			"free":         free.Flags == 0 && uint64(free.Overhead) == 4*ptr,
			"after free":   rest.Data == free.Data+free.Size+2*uint64(free.Overhead),
			"uncommitted":  rest.Data == region.Data+region.Committed && rest.Overhead == 0,
		} {
			if !ok {
				t.Errorf("%d-bit: %s: entries %+v", 8*ptr, what, e)
			}
		}
	}
}

// TestWalkFrontEnd: seventeen blocks come and go, and leave nothing; of the next eighteen the front end serves all, and
// leaves its free blocks.
func TestWalkFrontEnd(t *testing.T) {
	for _, ptr := range []uint64{4, 8} {
		_, thread := heapOf(t, int(ptr), Options{})
		h, _ := thread.HeapCreate(0, 0, 0)
		size := 24 + 2*ptr
		comeAndGo := func(n int) {
			var blocks []uint64
			for range n {
				blocks = append(blocks, mustAlloc(t, thread, h, size))
			}
			for _, p := range blocks {
				if ok, err := thread.HeapFree(h, 0, p); !ok {
					t.Fatal(err)
				}
			}
		}
		comeAndGo(17)
		if e := walked(t, thread, h); len(e) != 3 {
			t.Errorf("%d-bit: after 17 blocks: %+v", 8*ptr, e)
		}
		comeAndGo(18)
		e := walked(t, thread, h)
		if len(e) <= 24 || e[len(e)-1].Flags != EntryUncommittedRange {
			t.Fatalf("%d-bit: after 18 more: %+v", 8*ptr, e)
		}
		for _, free := range e[4:22] {
			if free.Flags != 0 || free.Size != 0x20 || uint64(free.Overhead) != 2*ptr {
				t.Errorf("%d-bit: a free block of the front end: %+v", 8*ptr, free)
			}
		}
		for range 18 {
			mustAlloc(t, thread, h, size)
		}
		for _, busy := range walked(t, thread, h) {
			if busy.Flags == EntryBusy && (busy.Size != size || busy.Overhead != 8) {
				t.Errorf("%d-bit: a busy block of the front end: %+v", 8*ptr, busy)
			}
		}
	}
}

func TestWalkFromWhatIsGone(t *testing.T) {
	_, thread := heapOf(t, 8, Options{})
	h := thread.GetProcessHeap()
	var gone []ProcessHeapEntry
	for _, size := range []uint64{100, 0x100000} {
		before, p := mustAlloc(t, thread, h, 500), mustAlloc(t, thread, h, size)
		thread.HeapFree(h, 0, before)
		for _, e := range walked(t, thread, h) {
			if e.Data == p {
				gone = append(gone, e)
			}
		}
		thread.HeapFree(h, 0, p)
	}
	gone = append(gone, ProcessHeapEntry{Data: 16}, ProcessHeapEntry{Data: h + 0x5000000, Flags: EntryRegion},
		ProcessHeapEntry{Data: h + 0x8000, Size: 1 << 63, Flags: EntryUncommittedRange})
	for _, e := range gone {
		_, err := thread.HeapWalk(h, &e)
		win32Error(t, "HeapWalk from what is gone", err, errorInvalidParameter)
	}
}

// TestRangeIsFilledAgain: what a large free run has given back is committed again for a block of the same size.
func TestRangeIsFilledAgain(t *testing.T) {
	_, thread := heapOf(t, 8, Options{})
	h := thread.GetProcessHeap()
	p, last := mustAlloc(t, thread, h, 0x50123), mustAlloc(t, thread, h, 100)
	before, _ := thread.Report(h)
	thread.HeapFree(h, 0, p)
	if r, _ := thread.Report(h); r.Committed > before.Committed-0x40000 {
		t.Errorf("%#x of %#x bytes stay committed", r.Committed, before.Committed)
	}
	if q := mustAlloc(t, thread, h, 0x50123); q != p {
		t.Errorf("a block of the same size is at %#x, not %#x", q, p)
	}
	if r, _ := thread.Report(h); r.Committed != before.Committed {
		t.Errorf("%#x bytes are committed, want %#x", r.Committed, before.Committed)
	}
	for _, p := range []uint64{p, last} {
		if ok, err := thread.HeapFree(h, 0, p); !ok {
			t.Error(err)
		}
	}
	if ok, _ := thread.HeapValidate(h, 0, 0); !ok {
		t.Error("the heap is damaged")
	}
}

// TestHeadersAreWiped: a header that no longer begins a block is gone, so nothing takes it for one.
func TestHeadersAreWiped(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	h := thread.GetProcessHeap()
	var blocks []uint64
	for range 4 {
		blocks = append(blocks, mustAlloc(t, thread, h, 3000))
	}
	for _, i := range []int{0, 2, 1} { // the last joins one before and one behind
		thread.HeapFree(h, 0, blocks[i])
	}
	for _, p := range blocks[1:3] {
		var b [8]byte
		if err := space.Read(p-8, b[:]); err != nil || b != [8]byte{} {
			t.Errorf("before %#x there still is % x, %v", p, b, err)
		}
	}
}

func TestInformation(t *testing.T) {
	space, thread := heapOf(t, 8, Options{GlobalFlags: GlobalFlagValidateAll})
	h := thread.GetProcessHeap()
	_, err := thread.HeapSetInformation(h, 77, 0)
	win32Error(t, "HeapSetInformation of an unknown class", err, errorInvalidParameter)
	_, _, err = thread.HeapQueryInformation(h, HeapEnableTerminationOnCorruption, 4)
	win32Error(t, "HeapQueryInformation of a class that is only set", err, errorInvalidParameter)

	p := mustAlloc(t, thread, h, 0x60000)
	thread.HeapFree(h, 0, p)
	before, _ := space.used()
	if ok, err := thread.HeapSetInformation(0, HeapOptimizeResources, 0); !ok {
		t.Error(err)
	}
	if after, _ := space.used(); after >= before {
		t.Errorf("%d bytes committed before HeapOptimizeResources, %d after", before, after)
	}

	// With validation at every call an allocation finds damage far from it.
	p = mustAlloc(t, thread, h, 100)
	q := mustAlloc(t, thread, h, 100)
	change(t, space, p-3, 1)
	for _, ends := range []bool{false, true} {
		_, err = thread.HeapAlloc(h, 0, 5000)
		var e *Exception
		if !errors.As(err, &e) || e.Status != StatusHeapCorruption || e.Terminate != ends {
			t.Errorf("HeapAlloc from a damaged heap: %v, terminate %v", err, ends)
		}
		if ok, err := thread.HeapSetInformation(0, HeapEnableTerminationOnCorruption, 0); !ok {
			t.Error(err)
		}
	}
	_, err = thread.HeapSize(h, 0, q)
	if err != nil {
		t.Error(err)
	}
}

// sized is a space that says of itself what it is told to.
type sized struct {
	*fakeSpace
	pointer, page int
}

func (s sized) PointerSize() int { return s.pointer }
func (s sized) PageSize() int    { return s.page }

func TestUnfitSpaces(t *testing.T) {
	for _, s := range []sized{{nil, 2, 0x1000}, {nil, 8, 0x200}, {nil, 8, 0x3000}, {nil, 4, 0x10000}} {
		if _, err := New(s, Options{}); err == nil {
			t.Errorf("pointers of %d bytes and pages of %d are accepted", s.pointer, s.page)
		}
	}
	space := newFakeSpace(8)
	space.limit = 0x1000
	if _, err := New(space, Options{}); err == nil {
		t.Error("a heap without memory for its header")
	}
	if now, _ := space.used(); now != 0 {
		t.Errorf("it keeps %d bytes", now)
	}
}
