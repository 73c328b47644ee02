package heap

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// held is what the model of Global and Local memory knows of a block.
type held struct {
	fixed       bool
	discardable bool
	discarded   bool
	locks       int
	data        []byte
}

// globals is Global and Local memory beside a map of what it must hold.
type globals struct {
	space  *fakeSpace
	thread *Thread
	blocks map[uint64]*held
}

func (g *globals) pick(t *rapid.T) (uint64, *held) {
	var all []uint64
	for m := range g.blocks {
		all = append(all, m)
	}
	if len(all) == 0 {
		t.Skip("no blocks")
	}
	slices.Sort(all)
	m := rapid.SampledFrom(all).Draw(t, "block")
	return m, g.blocks[m]
}

// address is where the data of a block is: a lock and an unlock tell.
func (g *globals) address(t *rapid.T, m uint64) uint64 {
	p, err := g.thread.GlobalLock(m)
	if err != nil || p == 0 {
		t.Fatalf("GlobalLock: %#x, %v", p, err)
	}
	if _, err := g.thread.GlobalUnlock(m); err != nil && !errors.Is(err, win32(errorSuccess)) {
		t.Fatal(err)
	}
	return p
}

func (g *globals) fill(t *rapid.T, m uint64, size uint64) []byte {
	b := bytes.Repeat([]byte{byte(m >> 4), byte(size)}, int(size+1)/2)[:size]
	if err := g.space.Write(g.address(t, m), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (g *globals) alloc(t *rapid.T) {
	flags := rapid.SampledFrom([]uint32{MemFixed, MemMoveable, MemMoveable | GMemDiscard, GHND, GPTR}).Draw(t, "flags")
	size := rapid.OneOf(small, rapid.Uint64Range(1, 0x9000)).Draw(t, "size")
	m, err := g.thread.GlobalAlloc(flags, size)
	if err != nil || g.blocks[m] != nil {
		t.Fatalf("GlobalAlloc: %#x, %v", m, err)
	}
	b := &held{fixed: flags&MemMoveable == 0, discardable: flags&GMemDiscard != 0}
	if b.discarded = !b.fixed && size == 0; b.fixed {
		size = max(size, 1)
	}
	g.blocks[m] = b
	if !b.discarded {
		b.data = g.fill(t, m, size)
	}
}

func (g *globals) realloc(t *rapid.T) {
	m, b := g.pick(t)
	size := rapid.OneOf(small, rapid.Uint64Range(1, 0x9000)).Draw(t, "size")
	q, err := g.thread.GlobalReAlloc(m, size, GHND)
	if size == 0 && !b.fixed {
		if (q == 0) != (b.locks > 0) {
			t.Fatalf("discarding a block locked %d times: %#x, %v", b.locks, q, err)
		}
		if q != 0 {
			b.discarded, b.data = true, nil
		}
		return
	}
	if err != nil || (!b.fixed && q != m) {
		t.Fatalf("GlobalReAlloc: %#x, %v", q, err)
	}
	want := append(slices.Clone(b.data), make([]byte, max(size, uint64(len(b.data)))-uint64(len(b.data)))...)[:size]
	got := make([]byte, size)
	if err := g.space.Read(g.address(t, q), got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the data has changed, %v", err)
	}
	delete(g.blocks, m)
	b.discarded = false
	g.blocks[q] = b
	b.data = g.fill(t, q, size)
}

func (g *globals) lock(t *rapid.T) {
	m, b := g.pick(t)
	p, err := g.thread.GlobalLock(m)
	if (p == 0) != b.discarded || (b.discarded && !errors.Is(err, win32(errorDiscarded))) {
		t.Fatalf("GlobalLock: %#x, %v", p, err)
	}
	if !b.discarded && !b.fixed {
		b.locks++
	}
	if handle, err := g.thread.GlobalHandle(p); p != 0 && handle != m {
		t.Fatalf("GlobalHandle: %#x, %v", handle, err)
	}
}

func (g *globals) unlock(t *rapid.T) {
	m, b := g.pick(t)
	ok, err := g.thread.GlobalUnlock(m)
	switch {
	case b.fixed || b.locks > 1:
		if !ok || err != nil {
			t.Fatalf("GlobalUnlock of %+v: %v, %v", b, ok, err)
		}
	case b.locks == 1:
		if ok || !errors.Is(err, win32(errorSuccess)) {
			t.Fatalf("the last GlobalUnlock: %v, %v", ok, err)
		}
	case ok || !errors.Is(err, win32(errorNotLocked)):
		t.Fatalf("GlobalUnlock too often: %v, %v", ok, err)
	}
	b.locks = max(b.locks-1, 0)
}

func (g *globals) free(t *rapid.T) {
	m, _ := g.pick(t)
	if left, err := g.thread.GlobalFree(m); left != 0 || err != nil {
		t.Fatalf("GlobalFree: %#x, %v", left, err)
	}
	delete(g.blocks, m)
}

func (g *globals) modify(t *rapid.T) {
	m, b := g.pick(t)
	if b.fixed {
		q, err := g.thread.GlobalReAlloc(m, 0, MemModify|MemMoveable)
		if err != nil || q%16 != 8 {
			t.Fatalf("making a block movable: %#x, %v", q, err)
		}
		delete(g.blocks, m)
		b.fixed = false
		g.blocks[q] = b
		return
	}
	if q, err := g.thread.GlobalReAlloc(m, 0, MemModify|GMemDiscard); q != m {
		t.Fatal(err)
	}
	b.discardable = true
}

func (g *globals) check(t *rapid.T) {
	busy := 0
	for m, b := range g.blocks {
		size, err := g.thread.GlobalSize(m)
		if err != nil || size != uint64(len(b.data)) || (m%16 == 8) == b.fixed {
			t.Fatalf("block %#x has size %d, %v; want %+v", m, size, err, b)
		}
		want := uint32(b.locks)
		if b.discardable {
			want |= GMemDiscard
		}
		if b.discarded {
			want |= MemDiscarded
		} else {
			busy++
			got := make([]byte, len(b.data))
			if err := g.space.Read(g.address(t, m), got); err != nil || !bytes.Equal(got, b.data) {
				t.Fatalf("block %#x has changed, %v", m, err)
			}
		}
		if f, err := g.thread.GlobalFlags(m); f != want || err != nil {
			t.Fatalf("flags %#x, %v; want %#x", f, err, want)
		}
	}
	h := g.thread.GetProcessHeap()
	if r, err := g.thread.Report(h); err != nil || r.BusyBlocks != busy {
		t.Fatalf("%d busy blocks, %v; want %d", r.BusyBlocks, err, busy)
	}
	if ok, err := g.thread.HeapValidate(h, 0, 0); !ok {
		t.Fatalf("the heap is damaged: %v", err)
	}
}

func TestGlobalModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		space := newFakeSpace(8)
		heaps, err := New(space, Options{Random: seeded(rapid.Uint64().Draw(t, "seed"))})
		if err != nil {
			t.Fatal(err)
		}
		g := &globals{space, heaps.Thread(context.Background()), map[uint64]*held{}}
		t.Repeat(map[string]func(*rapid.T){"alloc": g.alloc, "allocToo": g.alloc, "realloc": g.realloc, "lock": g.lock,
			"unlock": g.unlock, "free": g.free, "modify": g.modify, "": g.check})
	})
}

// TestDamagedHandles: the table of handles is in the process's memory as well, and so can be damaged.
func TestDamagedHandles(t *testing.T) {
	for _, ptr := range []uint64{4, 8} {
		space, thread := heapOf(t, int(ptr), Options{})
		m, err := thread.GlobalAlloc(GHND, 100)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := thread.GlobalAlloc(GHND, 100)
		p, _ := thread.GlobalLock(m)
		q, _ := thread.GlobalLock(other)
		set := func(addr, v uint64) {
			b := make([]byte, ptr)
			for i := range b {
				b[i] = byte(v >> (8 * i))
			}
			if err := space.Write(addr, b); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range []uint64{p + 1, p + 4*ptr, 0x1000, q + 0x100000} {
			set(m, v)
			_, err := thread.GlobalSize(m)
			win32Error(t, "GlobalSize", err, errorInvalidHandle)
			_, err = thread.GlobalHandle(p)
			win32Error(t, "GlobalHandle", err, errorInvalidHandle)
			left, err := thread.GlobalFree(m)
			corrupted(t, "GlobalFree", err)
			if left != m {
				t.Errorf("GlobalFree of a damaged handle is %#x", left)
			}
		}
		set(m, p)
		if left, err := thread.GlobalFree(m); left != 0 {
			t.Error(err)
		}
		set(m-ptr, 0x12345670) // the list of free handles
		if _, err = thread.GlobalAlloc(GHND, 1); err == nil {
			t.Error("a handle was taken from a damaged list")
		}
		corrupted(t, "GlobalAlloc", err)
		if n, err := thread.LocalSize(other); n != 100 {
			t.Error(err)
		}
		if f, err := thread.LocalFlags(other); f != 1 {
			t.Errorf("flags %#x, %v", f, err)
		}
	}
}
