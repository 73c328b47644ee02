package heap

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// model is a heap beside a map of what its blocks must hold.
type model struct {
	t      *rapid.T
	space  *fakeSpace
	thread *Thread
	handle uint64
	fixed  bool
	pages  bool // page heap
	live   map[uint64][]byte
}

// sizes are what blocks are asked for: mostly small, some at the limits of the front end, of segments and of pages.
var sizes = rapid.OneOf(
	small, small, small,
	rapid.Uint64Range(0, 5000),
	rapid.Uint64Range(0, 5000),
	rapid.Uint64Range(0x3000, 0x20000),
	rapid.Uint64Range(0x3000, 0x110000),
)

var small = rapid.Uint64Range(0, 64)

func (m *model) addresses() []uint64 {
	var a []uint64
	for p := range m.live {
		a = append(a, p)
	}
	slices.Sort(a)
	return a
}

// pick draws a live block; ok is false if there is none.
func (m *model) pick(t *rapid.T) (p uint64, ok bool) {
	a := m.addresses()
	if len(a) == 0 {
		return 0, false
	}
	return a[rapid.IntRange(0, len(a)-1).Draw(t, "block")], true
}

// stamp writes a block's data, which its address and size determine.
func (m *model) stamp(p, size uint64) {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(p>>4) ^ byte(i*7) ^ byte(size)
	}
	if err := m.space.Write(p, b); err != nil {
		m.t.Fatalf("a block of %d bytes at %#x cannot be written: %v", size, p, err)
	}
	m.live[p] = b
}

func (m *model) holds(p uint64, want []byte) {
	got := make([]byte, len(want))
	if err := m.space.Read(p, got); err != nil {
		m.t.Fatalf("block %#x: %v", p, err)
	}
	if !bytes.Equal(got, want) {
		m.t.Fatalf("block %#x of %d bytes has changed", p, len(want))
	}
}

// refused accepts an error that only says that there is no memory.
func (m *model) refused(err error, may bool) {
	if !errors.Is(err, win32(errorNotEnoughMemory)) || !may {
		m.t.Fatalf("refused: %v", err)
	}
}

func (m *model) alloc(t *rapid.T) { m.allocate(t, sizes.Draw(t, "size")) }

func (m *model) allocate(t *rapid.T, size uint64) {
	zero := rapid.Bool().Draw(t, "zero")
	flags := uint32(0)
	if zero {
		flags = ZeroMemory
	}
	p, err := m.thread.HeapAlloc(m.handle, flags, size)
	if err != nil {
		m.refused(err, m.fixed || m.space.limit != 0)
		return
	}
	if p%(2*m.space.ptr) != 0 {
		t.Fatalf("block %#x is not aligned", p)
	}
	if zero {
		m.holds(p, make([]byte, size))
	}
	m.place(p, size)
}

// place enters a new block, which must not overlap another.
func (m *model) place(p, size uint64) {
	for q, b := range m.live {
		if p < q+uint64(len(b)) && q < p+size || p == q {
			m.t.Fatalf("block %#x of %d bytes overlaps block %#x of %d", p, size, q, len(b))
		}
	}
	m.stamp(p, size)
}

func (m *model) free(t *rapid.T) {
	p, ok := m.pick(t)
	if !ok {
		return
	}
	m.holds(p, m.live[p])
	if ok, err := m.thread.HeapFree(m.handle, 0, p); !ok {
		t.Fatal(err)
	}
	delete(m.live, p)
	if m.pages && m.space.Read(p, make([]byte, 1)) == nil {
		t.Fatalf("a freed block of the page heap at %#x can be read", p)
	}
}

func (m *model) realloc(t *rapid.T) {
	p, ok := m.pick(t)
	if !ok {
		return
	}
	size := sizes.Draw(t, "size")
	flags := rapid.SampledFrom([]uint32{0, ZeroMemory, ReallocInPlaceOnly}).Draw(t, "flags")
	old := m.live[p]
	q, err := m.thread.HeapReAlloc(m.handle, flags, p, size)
	if err != nil {
		m.refused(err, m.fixed || m.space.limit != 0 || flags == ReallocInPlaceOnly)
		m.holds(p, old)
		return
	}
	if flags == ReallocInPlaceOnly && q != p {
		t.Fatal("moved")
	}
	m.holds(q, old[:min(size, uint64(len(old)))])
	if flags == ZeroMemory && size > uint64(len(old)) {
		m.holds(q+uint64(len(old)), make([]byte, size-uint64(len(old))))
	}
	delete(m.live, p)
	m.place(q, size)
}

func (m *model) compact(t *rapid.T) {
	largest, err := m.thread.HeapCompact(m.handle, 0)
	if err != nil {
		t.Fatal(err)
	}
	committed, _ := m.space.used()
	if largest == 0 || m.pages || largest > 0x60000 {
		return
	}
	p, err := m.thread.HeapAlloc(m.handle, 0, largest)
	if now, _ := m.space.used(); err != nil || (now != committed && largest > lfhMaxBlock) {
		t.Fatalf("the largest block of %d bytes cannot be had without committing more: %v", largest, err)
	}
	if ok, err := m.thread.HeapFree(m.handle, 0, p); !ok {
		t.Fatal(err)
	}
}

// check holds the heap's own view against the model's: contents, sizes, HeapValidate, HeapWalk, Report, commit.
func (m *model) check(t *rapid.T) {
	if ok, err := m.thread.HeapValidate(m.handle, 0, 0); !ok {
		h := m.thread.heaps.find(m.handle)
		t.Fatalf("the heap is damaged: %v, %v", err, h.call(m.thread, 0, func() error { h.check(); return nil }))
	}
	sum := uint64(0)
	for p, b := range m.live {
		sum += uint64(len(b))
		if n, err := m.thread.HeapSize(m.handle, 0, p); err != nil || n != uint64(len(b)) {
			t.Fatalf("block %#x has size %d, %v; want %d", p, n, err, len(b))
		}
	}
	r, err := m.thread.Report(m.handle)
	if err != nil || r.BusyBlocks != len(m.live) || r.BusyBytes != sum {
		t.Fatalf("report %+v, %v; want %d blocks, %d bytes", r, err, len(m.live), sum)
	}
	m.walk(t)
	if m.thread.GetProcessHeap() == m.handle {
		if now, _ := m.space.used(); r.Committed != now {
			t.Fatalf("the heap says that %d bytes are committed, the space %d", r.Committed, now)
		}
	}
}

func (m *model) walk(t *rapid.T) {
	var e ProcessHeapEntry
	var last uint64
	seen := map[uint64]uint64{}
	for {
		ok, err := m.thread.HeapWalk(m.handle, &e)
		if !ok {
			if !errors.Is(err, win32(errorNoMoreItems)) {
				t.Fatal(err)
			}
			break
		}
		if e.Flags&EntryBusy != 0 {
			seen[e.Data] = e.Size
		}
		if e.Flags&EntryRegion != 0 || e.RegionIndex == largeRegionIndex {
			last = 0
		} else if e.Data <= last {
			t.Fatalf("entry %+v comes after %#x", e, last)
		} else {
			last = e.Data
		}
	}
	if len(seen) != len(m.live) {
		t.Fatalf("HeapWalk saw %d blocks, want %d", len(seen), len(m.live))
	}
	for p, b := range m.live {
		if n, ok := seen[p]; !ok || n != uint64(len(b)) {
			t.Fatalf("HeapWalk saw %d bytes at %#x, want %d", n, p, len(b))
		}
	}
}

func TestModel(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); testing.Short() && checks.Value.String() == checks.DefValue {
		checks.Value.Set("15")
		defer checks.Value.Set(checks.DefValue)
	}
	for _, c := range []struct {
		name    string
		ptr     int
		flags   uint32
		maximum uint64 // of HeapCreate; 0: the default heap, which grows
		limit   uint64
		options Options
		coarse  bool
	}{
		{name: "x64", ptr: 8},
		{name: "x86", ptr: 4},
		{name: "fixed", ptr: 8, maximum: 0x180000},
		{name: "commit-limit", ptr: 8, limit: 0x60000},
		{name: "no-serialize-x86", ptr: 4, flags: NoSerialize, maximum: 0x200000},
		{name: "checking", ptr: 8, options: Options{GlobalFlags: GlobalFlagTailCheck | GlobalFlagFreeCheck}},
		{name: "checking-x86", ptr: 4, options: Options{GlobalFlags: GlobalFlagTailCheck | GlobalFlagFreeCheck}},
		{name: "pages", ptr: 8, options: Options{GlobalFlags: GlobalFlagPageAllocs}},
		{name: "pages-x86", ptr: 4, options: Options{GlobalFlags: GlobalFlagPageAllocs}},
		{name: "committed", ptr: 8, options: Options{Reserve: 0x2FF001, Commit: 0x2FF001}},
		{name: "16k", ptr: 8, coarse: true},
		{name: "16k-pages-x86", ptr: 4, coarse: true, options: Options{GlobalFlags: GlobalFlagPageAllocs}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				space := newFakeSpace(c.ptr)
				options := c.options
				options.Random = seeded(rapid.Uint64().Draw(t, "seed"))
				var used Space = space
				if c.coarse {
					used = coarse{space}
				}
				heaps, err := New(used, options)
				if err != nil {
					t.Fatal(err)
				}
				space.limit = c.limit
				m := &model{t: t, space: space, thread: heaps.Thread(context.Background()), fixed: c.maximum != 0,
					pages: options.GlobalFlags&GlobalFlagPageAllocs != 0, live: map[uint64][]byte{}}
				m.handle = m.thread.GetProcessHeap()
				if c.maximum != 0 {
					if m.handle, err = m.thread.HeapCreate(c.flags, 0, c.maximum); err != nil {
						t.Fatal(err)
					}
				}
				many := func(t *rapid.T) { // brings the front end up
					size := rapid.Uint64Range(0, 600).Draw(t, "size")
					for range rapid.IntRange(2, 40).Draw(t, "times") {
						m.allocate(t, size)
					}
				}
				t.Repeat(map[string]func(*rapid.T){"alloc": m.alloc, "free": m.free, "freeToo": m.free, "realloc": m.realloc,
					"compact": m.compact, "many": many, "": m.check})
				for _, p := range m.addresses() {
					if ok, err := m.thread.HeapFree(m.handle, 0, p); !ok {
						t.Fatal(err)
					}
				}
				m.live = map[uint64][]byte{}
				m.check(t)
				m.end(t)
			})
		})
	}
}

// end destroys what can be destroyed, after which nothing but the default heap may be left in the space.
func (m *model) end(t *rapid.T) {
	if m.handle == m.thread.GetProcessHeap() {
		return
	}
	if ok, err := m.thread.HeapDestroy(m.handle); !ok {
		t.Fatal(err)
	}
	if _, _, n := m.space.region(0); n != 1 {
		t.Fatalf("%d reservations are left", n)
	}
}

func TestConcurrent(t *testing.T) {
	for _, global := range []uint32{0, GlobalFlagTailCheck, GlobalFlagPageAllocs} {
		t.Run(fmt.Sprintf("gflags-%#x", global), func(t *testing.T) {
			space, first := heapOf(t, 8, Options{GlobalFlags: global})
			var wg sync.WaitGroup
			for n := range uint64(8) {
				wg.Go(func() {
					flags := uint32(0)
					if n == 0 {
						flags = NoSerialize // a mistake of the program's; the library must bear it
					}
					use(t, space, first.heaps.Thread(context.Background()), flags, n)
				})
			}
			wg.Wait()
			if ok, _ := first.HeapValidate(first.GetProcessHeap(), 0, 0); !ok {
				t.Error("the heap is damaged")
			}
			if r, err := first.Report(first.GetProcessHeap()); err != nil || r.BusyBlocks != 0 {
				t.Errorf("%d blocks are left, %v", r.BusyBlocks, err)
			}
		})
	}
}

// use allocates, checks and frees blocks of a thread's own, Global memory among them.
func use(t *testing.T, space *fakeSpace, thread *Thread, flags uint32, n uint64) {
	h := thread.GetProcessHeap()
	random := seeded(n)
	type held struct{ p, size uint64 }
	var blocks []held
	drop := func(i int) {
		b := blocks[i]
		got := make([]byte, b.size)
		if err := space.Read(b.p, got); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(n)}, int(b.size))) {
			t.Errorf("block %#x has changed: %v", b.p, err)
		}
		if ok, err := thread.HeapFree(h, flags, b.p); !ok {
			t.Error(err)
		}
		blocks = slices.Delete(blocks, i, i+1)
	}
	for range 400 {
		if len(blocks) > 30 {
			drop(int(random() % uint64(len(blocks))))
		}
		size := random() % 300
		if random()%16 == 0 {
			size *= 500
		}
		p, err := thread.HeapAlloc(h, flags, size)
		if err != nil {
			t.Error(err)
			return
		}
		if err := space.Write(p, bytes.Repeat([]byte{byte(n)}, int(size))); err != nil {
			t.Error(err)
		}
		blocks = append(blocks, held{p, size})
		handle, err := thread.GlobalAlloc(GHND, 40)
		if err != nil {
			t.Error(err)
			return
		}
		if p, err := thread.GlobalLock(handle); p == 0 {
			t.Error(err)
		}
		if left, err := thread.GlobalFree(handle); left != 0 {
			t.Error(err)
		}
	}
	for len(blocks) > 0 {
		drop(0)
	}
}
