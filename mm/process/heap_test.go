package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"memfs/mm/heap"
)

// heapModel is a process's heap, whose pages are paged, beside a map of what its blocks must hold.
type heapModel struct {
	p      *Process
	thread *heap.Thread
	handle uint64
	live   map[uint64][]byte
	stamps byte
}

func (m *heapModel) pick(t *rapid.T) (uint64, bool) {
	if len(m.live) == 0 {
		return 0, false
	}
	var all []uint64
	for p := range m.live {
		all = append(all, p)
	}
	slices.Sort(all)
	return rapid.SampledFrom(all).Draw(t, "block"), true
}

// place enters a block of size bytes of which the first keep are as they were.
func (m *heapModel) place(t *rapid.T, p uint64, kept []byte, size int) {
	for q, b := range m.live {
		if p < q+uint64(len(b)) && q < p+uint64(size) || p == q {
			t.Fatalf("block 0x%x of %d bytes overlaps block 0x%x of %d", p, size, q, len(b))
		}
	}
	b := make([]byte, size)
	copy(b, kept)
	m.stamps++
	for i := min(len(kept), size); i < size; i++ {
		b[i] = m.stamps + byte(i)
	}
	if err := m.p.Write(p, b); err != nil {
		t.Fatalf("block 0x%x of %d bytes: %v", p, size, err)
	}
	m.live[p] = b
}

func (m *heapModel) alloc(t *rapid.T) {
	size := heapSizes.Draw(t, "size")
	p, err := m.thread.HeapAlloc(m.handle, 0, uint64(size))
	if err != nil {
		t.Skip(err) // the page file is full
	}
	m.place(t, p, nil, size)
}

var heapSizes = rapid.Custom(func(t *rapid.T) int {
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0:
		return rapid.IntRange(0xF0000, 0x110000).Draw(t, "bytes") // at the threshold of virtual blocks
	case 1, 2:
		return rapid.IntRange(0, 0x9000).Draw(t, "bytes")
	case 3, 4, 5, 6, 7, 8:
		return rapid.IntRange(0, 5000).Draw(t, "bytes")
	}
	return rapid.IntRange(0, 64).Draw(t, "bytes")
})

func (m *heapModel) realloc(t *rapid.T) {
	p, ok := m.pick(t)
	if !ok {
		t.Skip("no block")
	}
	size := heapSizes.Draw(t, "size")
	q, err := m.thread.HeapReAlloc(m.handle, 0, p, uint64(size))
	if err != nil {
		t.Skip(err)
	}
	kept := m.live[p]
	delete(m.live, p)
	m.place(t, q, kept[:min(len(kept), size)], size)
}

func (m *heapModel) free(t *rapid.T) {
	p, ok := m.pick(t)
	if !ok {
		t.Skip("no block")
	}
	if ok, err := m.thread.HeapFree(m.handle, 0, p); !ok {
		t.Fatalf("HeapFree(0x%x): %v", p, err)
	}
	delete(m.live, p)
}

// trim takes every page out of the working set.
func (m *heapModel) trim(*rapid.T) { m.p.EmptyWorkingSet() }

func (m *heapModel) compact(t *rapid.T) {
	if _, err := m.thread.HeapCompact(m.handle, 0); err != nil {
		t.Fatal(err)
	}
}

// check compares some of the blocks' bytes, and all of the walk.
func (m *heapModel) check(t *rapid.T) {
	if ok, _ := m.thread.HeapValidate(m.handle, 0, 0); !ok {
		t.Fatal("the heap is damaged")
	}
	walked := 0
	err := m.thread.Walk(m.handle, func(e *heap.ProcessHeapEntry) bool {
		if e.Flags&heap.EntryBusy == 0 {
			return true
		}
		walked++
		if b, ok := m.live[e.Data]; !ok || uint64(len(b)) != e.Size {
			t.Fatalf("a walk has a block of %d bytes at 0x%x; there is one of %d: %v", e.Size, e.Data, len(b), ok)
		}
		return true
	})
	if err != nil || walked != len(m.live) {
		t.Fatalf("a walk has %d of %d blocks: %v", walked, len(m.live), err)
	}
	if p, ok := m.pick(t); ok {
		m.holds(t, p)
	}
}

func (m *heapModel) holds(t interface{ Fatalf(string, ...any) }, p uint64) {
	got := make([]byte, len(m.live[p]))
	if err := m.p.Read(p, got); err != nil {
		t.Fatalf("block 0x%x: %v", p, err)
	}
	if !bytes.Equal(got, m.live[p]) {
		t.Fatalf("block 0x%x of %d bytes has changed", p, len(got))
	}
}

// TestHeapModel is a heap on a machine of 64 frames, which has a fraction of what it holds in memory.
func TestHeapModel(t *testing.T) {
	images := []Image{{Arch: X64}, {Arch: X86, GlobalFlags: heap.GlobalFlagValidateParameters},
		{Arch: X64, GlobalFlags: heap.GlobalFlagPageAllocs}}
	rapid.Check(t, func(t *rapid.T) {
		image := rapid.SampledFrom(images).Draw(t, "image")
		sys := newSystem(t, 64, 4096)
		machine := NewMachine(sys, OptIn, Listener{})
		p, err := machine.Start(image)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			for _, err := range append(sys.Check(), machine.Check()...) {
				t.Error(err)
			}
			machine.End(p)
			if err := sys.Close(); err != nil {
				t.Error(err)
			}
		}()
		heaps, err := p.Heaps()
		if err != nil {
			t.Fatal(err)
		}
		m := &heapModel{p: p, thread: heaps.Thread(context.Background()), live: make(map[uint64][]byte)}
		if m.handle, err = m.thread.HeapCreate(0, 0, 0); err != nil {
			t.Fatal(err)
		}
		t.Repeat(map[string]func(*rapid.T){"alloc": m.alloc, "allocToo": m.alloc, "realloc": m.realloc, "free": m.free,
			"trim": m.trim, "compact": m.compact, "": m.check})
		for p := range m.live {
			m.holds(t, p)
		}
	})
}

// heapAbuse is a process's heap that is being damaged, and what its user believes.
type heapAbuse struct {
	t      testing.TB
	p      *Process
	thread *heap.Thread
	handle uint64
	live   map[uint64]uint64
	sound  bool
	rnd    *rand.Rand
}

// damage overwrites some bytes of a page that the heap has committed.
func (a *heapAbuse) damage(where uint64, b []byte) {
	var pages []uint64
	for _, m := range a.p.Maps() {
		if m.Use == "" || m.State != StateCommit || m.Protect.Base() != ReadWrite {
			continue
		}
		for at := m.BaseAddress; at < m.BaseAddress+m.RegionSize; at += PageSize {
			pages = append(pages, at)
		}
	}
	at := pages[where>>12%uint64(len(pages))] + where%PageSize
	b = b[:min(uint64(len(b)), PageSize-at%PageSize)]
	if err := a.p.Write(at, b); err != nil {
		a.t.Fatalf("damage at 0x%x: %v", at, err)
	}
}

func (a *heapAbuse) any() uint64 {
	if len(a.live) == 0 {
		return 0
	}
	var all []uint64
	for p := range a.live {
		all = append(all, p)
	}
	slices.Sort(all)
	return all[a.rnd.IntN(len(all))]
}

// call makes one call, which ends with a result, a Win32 error, or an exception.
func (a *heapAbuse) call(c byte) {
	var err error
	size := uint64(c/8) * uint64(c/8) * 8
	p := a.any()
	switch c % 8 {
	case 0, 1:
		var q uint64
		if q, err = a.thread.HeapAlloc(a.handle, 0, size); err == nil {
			a.took(q, size)
		}
	case 2:
		if _, err = a.thread.HeapFree(a.handle, 0, p); err == nil {
			delete(a.live, p)
		}
	case 3:
		_, err = a.thread.HeapValidate(a.handle, 0, 0)
	case 4:
		n := 0
		err = a.thread.Walk(a.handle, func(*heap.ProcessHeapEntry) bool { n++; return n < 1<<20 })
		if n == 1<<20 {
			a.t.Fatal("a walk does not end")
		}
	case 5:
		_, err = a.thread.HeapCompact(a.handle, 0)
	case 6:
		var q uint64
		if q, err = a.thread.HeapReAlloc(a.handle, 0, p, size*4); err == nil && p != 0 {
			delete(a.live, p)
			a.took(q, size*4)
		}
	case 7:
		a.p.EmptyWorkingSet()
		_, err = a.thread.Report(a.handle)
	}
	var w *heap.Error
	var x *heap.Exception
	if err != nil && !errors.As(err, &w) && !errors.As(err, &x) {
		a.t.Fatalf("call %d: %v", c, err)
	}
}

func (a *heapAbuse) took(p, size uint64) {
	for q, n := range a.live {
		if a.sound && p < q+n && q < p+size {
			a.t.Fatalf("block 0x%x of %d bytes overlaps block 0x%x of %d in a heap that was found sound", p, size, q, n)
		}
	}
	a.live[p] = size
}

// FuzzHeapDamage overwrites bytes of a heap's pages, in memory or paged out, and goes on using it: no call crashes or runs
// on, and in a heap that HeapValidate finds sound no two blocks overlap. At the end everything goes back.
func FuzzHeapDamage(f *testing.F) {
	for seed := range uint64(12) {
		f.Add(seed, seed*0x9E3779B97F4A7C15, []byte{byte(seed), 0x80, 1, 0xFF}[:1+seed%4], []byte("the calls that follow\x00\x01\x02\x03"))
	}
	f.Fuzz(func(t *testing.T, seed, where uint64, bytes, calls []byte) {
		abuseHeap(t, seed, where, bytes, calls)
	})
}

func abuseHeap(t testing.TB, seed, where uint64, bytes, calls []byte) {
	watch := time.AfterFunc(2*time.Minute, func() { panic("a call on a damaged heap does not end") })
	defer watch.Stop()
	sys := newSystem(t, 64, 4096)
	machine := NewMachine(sys, OptIn, Listener{})
	image := Image{Arch: Arch(seed % 2)}
	if seed%3 == 0 {
		image.GlobalFlags = heap.GlobalFlagValidateParameters
	} else if seed%7 == 0 {
		image.GlobalFlags = heap.GlobalFlagPageAllocs
	}
	p, err := machine.Start(image)
	if err != nil {
		t.Fatal(err)
	}
	heaps, err := p.Heaps()
	if err != nil {
		t.Fatal(err)
	}
	a := &heapAbuse{t: t, p: p, thread: heaps.Thread(context.Background()), live: make(map[uint64]uint64),
		rnd: rand.New(rand.NewPCG(seed, 1))}
	a.handle = a.thread.GetProcessHeap()
	for i := range 120 {
		size := uint64(a.rnd.IntN(40))
		if i%5 == 0 {
			size = uint64(a.rnd.IntN(9000))
		}
		q, err := a.thread.HeapAlloc(a.handle, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		a.live[q] = size
		if i%3 == 0 {
			a.call(2)
		}
	}
	a.damage(where, bytes)
	p.EmptyWorkingSet()
	a.sound, _ = a.thread.HeapValidate(a.handle, 0, 0)
	for _, c := range calls[:min(len(calls), 200)] {
		a.call(c)
	}
	for _, err := range append(sys.Check(), machine.Check()...) {
		t.Error(err)
	}
	machine.End(p)
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestHeapDamage is FuzzHeapDamage with random input.
func TestHeapDamage(t *testing.T) {
	n := uint64(100)
	if testing.Short() {
		n = 25
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	for seed := range n {
		b := make([]byte, 1+rnd.IntN(64))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		calls := make([]byte, 60)
		for i := range calls {
			calls[i] = byte(rnd.Uint32())
		}
		where := rnd.Uint64()
		if seed%2 == 0 {
			where = uint64(rnd.IntN(0x1000)) // the heap's own header
		}
		abuseHeap(t, seed, where, b[:1+rnd.IntN(len(b))], calls)
	}
}

// TestHeapOneByte changes bytes of a heap's header and of its first blocks, one at a time, by one bit: either the heap
// is found damaged, or its user never notices.
func TestHeapOneByte(t *testing.T) {
	step := 7
	if testing.Short() {
		step = 97
	}
	sys := newSystem(t, 64, 4096)
	machine := NewMachine(sys, OptIn, Listener{})
	p, err := machine.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	heaps, err := p.Heaps()
	if err != nil {
		t.Fatal(err)
	}
	thread := heaps.Thread(context.Background())
	found := 0
	for at := 0; at < 0x1000; at += step {
		h, err := thread.HeapCreate(0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		live := make(map[uint64]uint64)
		for i := range uint64(12) {
			q, err := thread.HeapAlloc(h, 0, 30+i)
			if err != nil {
				t.Fatal(err)
			}
			live[q] = 30 + i
		}
		var b [1]byte
		if err := p.Read(h+uint64(at), b[:]); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1 << (at % 8)
		if err := p.Write(h+uint64(at), b[:]); err != nil {
			t.Fatal(err)
		}
		if ok, _ := thread.HeapValidate(h, 0, 0); !ok {
			found++
			b[0] ^= 1 << (at % 8)
			if err := p.Write(h+uint64(at), b[:]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint64(6) {
			q, err := thread.HeapAlloc(h, 0, 100*i)
			if err != nil {
				t.Fatalf("byte 0x%x: HeapAlloc in a heap that was found sound: %v", at, err)
			}
			for o, n := range live {
				if q < o+n && o < q+100*i {
					t.Fatalf("byte 0x%x: block 0x%x overlaps block 0x%x", at, q, o)
				}
			}
			live[q] = 100 * i
		}
		for q := range live {
			if ok, err := thread.HeapFree(h, 0, q); !ok {
				t.Fatalf("byte 0x%x: HeapFree in a heap that was found sound: %v", at, err)
			}
		}
		if ok, err := thread.HeapDestroy(h); !ok {
			t.Fatalf("byte 0x%x: %v", at, err)
		}
	}
	if found < 0x1000/step/4 {
		t.Errorf("%d changes found", found)
	}
	machine.End(p)
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestHeapLocks: a HeapLock keeps other threads waiting until it is given back, for a while at most, and no longer than
// the process lives.
func TestHeapLocks(t *testing.T) {
	sys := newSystem(t, 64, 512)
	machine := NewMachine(sys, OptIn, Listener{})
	p, err := machine.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	worker, err := p.NewThread(0)
	if err != nil {
		t.Fatal(err)
	}
	main, done, err := p.HeapThread(0)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	h := main.GetProcessHeap()
	alloc := func() error {
		other, done, err := p.HeapThread(worker.ID)
		if err != nil {
			return err
		}
		defer done()
		_, err = other.HeapAlloc(h, 0, 10)
		return err
	}
	if ok, err := main.HeapLock(h); !ok {
		t.Fatal(err)
	}
	if err := alloc(); !errors.Is(err, ErrDeadlock) {
		t.Errorf("another thread's HeapAlloc in a locked heap: %v", err)
	}
	if ok, err := main.HeapUnlock(h); !ok {
		t.Fatal(err)
	}
	if err := alloc(); err != nil {
		t.Error(err)
	}
	if _, _, err := p.HeapThread(4711); err != InvalidHandle {
		t.Errorf("a thread that there is not: %v", err)
	}
	if ok, err := main.HeapLock(h); !ok {
		t.Fatal(err)
	}
	if err := p.EndThread(worker.ID); err != nil {
		t.Fatal(err)
	}
	second, err := p.NewThread(0)
	if err != nil {
		t.Fatal(err)
	}
	if second.ID == worker.ID {
		t.Error("the number of a thread that has ended was given again")
	}
	waiting := make(chan error, 1)
	go func() {
		other, done, err := p.HeapThread(second.ID)
		if err == nil {
			defer done()
			_, err = other.HeapAlloc(h, 0, 10)
		}
		waiting <- err
	}()
	machine.End(p)
	if err := <-waiting; err == nil {
		t.Error("a call succeeded that began while the heap was locked and the process ending")
	}
	if _, err := p.Heaps(); err != nil {
		t.Errorf("the heaps of a process that has ended: %v", err)
	}
	if all, _ := p.HeapView(); all != nil {
		t.Error("a process that has ended still shows heaps")
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestHeapsAtOnce has threads use the heaps of one process at once, under paging, while the process's memory is looked at.
func TestHeapsAtOnce(t *testing.T) {
	sys := newSystem(t, 64, 4096)
	machine := NewMachine(sys, OptIn, Listener{})
	p, err := machine.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	heaps, err := p.Heaps()
	if err != nil {
		t.Fatal(err)
	}
	shared, err := heaps.Thread(context.Background()).HeapCreate(0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 150
	if testing.Short() {
		rounds = 40
	}
	var wg sync.WaitGroup
	for id := range 4 {
		wg.Go(func() {
			thread := heaps.Thread(context.Background())
			rnd := rand.New(rand.NewPCG(uint64(id), 3))
			mine := make(map[uint64]uint64)
			for n := range rounds {
				size := uint64(8 + rnd.IntN(3000))
				q, err := thread.HeapAlloc(shared, 0, size)
				if err != nil {
					t.Errorf("thread %d: %v", id, err)
					return
				}
				var b [8]byte
				binary.LittleEndian.PutUint64(b[:], uint64(id)<<32|uint64(n))
				if err := p.Write(q, b[:]); err != nil {
					t.Error(err)
				}
				mine[q] = uint64(id)<<32 | uint64(n)
				if len(mine) > 20 {
					for q, want := range mine {
						if err := p.Read(q, b[:]); err != nil || binary.LittleEndian.Uint64(b[:]) != want {
							t.Errorf("thread %d: block 0x%x has %x, want %x (%v)", id, q, b, want, err)
						}
						if ok, err := thread.HeapFree(shared, 0, q); !ok {
							t.Errorf("thread %d: %v", id, err)
						}
						delete(mine, q)
						break
					}
				}
				if n%10 == 0 {
					if m, err := thread.GlobalAlloc(heap.GHND, size); err != nil {
						t.Error(err)
					} else if left, err := thread.GlobalFree(m); left != 0 {
						t.Error(err)
					}
				}
			}
			for q := range mine {
				if ok, err := thread.HeapFree(shared, 0, q); !ok {
					t.Errorf("thread %d: %v", id, err)
				}
			}
		})
	}
	wg.Go(func() {
		for range rounds {
			p.EmptyWorkingSet()
			_, view := p.HeapView()
			if _, err := view.Report(shared); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	r, err := heaps.Thread(context.Background()).Report(shared)
	if err != nil || r.BusyBlocks != 0 {
		t.Errorf("%d blocks are left: %v", r.BusyBlocks, err)
	}
	for _, err := range append(sys.Check(), machine.Check()...) {
		t.Error(err)
	}
	machine.End(p)
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}
