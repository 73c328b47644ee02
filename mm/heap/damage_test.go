package heap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// corrupted fails unless err is STATUS_HEAP_CORRUPTION.
func corrupted(t *testing.T, what string, err error) {
	t.Helper()
	var e *Exception
	if !errors.As(err, &e) || e.Status != StatusHeapCorruption {
		t.Errorf("%s: %v; want STATUS_HEAP_CORRUPTION", what, err)
	}
}

// mixed makes blocks of every kind on the default heap and frees some of them. It returns those still there.
func mixed(t testing.TB, thread *Thread) []uint64 {
	t.Helper()
	h := thread.GetProcessHeap()
	var blocks, keep []uint64
	for i := range uint64(60) {
		for _, size := range [...]uint64{20, 100 + i, 3000 + 200*(i%3)} {
			p, err := thread.HeapAlloc(h, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			blocks = append(blocks, p)
		}
	}
	for _, size := range [...]uint64{0x20000, 0x100000, 0x10000, 0x100000} {
		p, err := thread.HeapAlloc(h, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, p)
	}
	for i, p := range blocks {
		if i%3 == 0 {
			if ok, err := thread.HeapFree(h, 0, p); !ok {
				t.Fatal(err)
			}
		} else {
			keep = append(keep, p)
		}
	}
	return keep
}

// headers are the addresses of the header words of all blocks HeapWalk shows, busy and free.
func headers(t *testing.T, space *fakeSpace, thread *Thread) (words []uint64) {
	var e ProcessHeapEntry
	unit := 2 * space.ptr
	for {
		ok, err := thread.HeapWalk(thread.GetProcessHeap(), &e)
		if !ok {
			if !errors.Is(err, win32(errorNoMoreItems)) {
				t.Fatal(err)
			}
			return words
		}
		switch {
		case e.Flags&EntryBusy != 0 || (e.Flags == 0 && uint64(e.Overhead) == unit):
			words = append(words, e.Data-8)
		case e.Flags == 0:
			words = append(words, e.Data-unit-8)
		}
	}
}

func TestEveryHeaderByte(t *testing.T) {
	for _, ptr := range []int{4, 8} {
		space, thread := heapOf(t, ptr, Options{})
		mixed(t, thread)
		words := headers(t, space, thread)
		if len(words) < 100 {
			t.Fatalf("%d headers", len(words))
		}
		for n, w := range words {
			for i := range uint64(8) {
				flip := byte(1) << ((n + int(i)) % 8)
				change(t, space, w+i, flip)
				if ok, _ := thread.HeapValidate(thread.GetProcessHeap(), 0, 0); ok {
					t.Errorf("byte %d of the header at %#x changed by %#x: not noticed", i, w, flip)
				}
				change(t, space, w+i, flip)
			}
		}
		if ok, _ := thread.HeapValidate(thread.GetProcessHeap(), 0, 0); !ok {
			t.Error("not the same heap any more")
		}
	}
}

func change(t *testing.T, space *fakeSpace, addr uint64, flip byte) {
	t.Helper()
	var b [1]byte
	if err := space.Read(addr, b[:]); err != nil {
		t.Fatal(err)
	}
	b[0] ^= flip
	if err := space.Write(addr, b[:]); err != nil {
		t.Fatal(err)
	}
}

func TestFreedTwice(t *testing.T) {
	for _, global := range []uint32{0, GlobalFlagPageAllocs} {
		for _, size := range []uint64{0, 10, 500, 20000, 0x130000} {
			for _, times := range []int{1, 40} { // the back end, and the front end
				space, thread := heapOf(t, 8, Options{GlobalFlags: global, TerminateOnCorruption: true})
				h := thread.GetProcessHeap()
				var blocks []uint64
				for range times {
					p, err := thread.HeapAlloc(h, 0, size)
					if err != nil {
						t.Fatal(err)
					}
					blocks = append(blocks, p)
				}
				p := blocks[times/2]
				if ok, err := thread.HeapFree(h, 0, p); !ok {
					t.Fatal(err)
				}
				what := fmt.Sprintf("gflags %#x, %d blocks of %d bytes", global, times, size)
				_, err := thread.HeapFree(h, 0, p)
				corrupted(t, what, err)
				var e *Exception
				if errors.As(err, &e) && !e.Terminate {
					t.Errorf("%s: does not end the process", what)
				}
				_, err = thread.HeapReAlloc(h, 0, p, size+1)
				corrupted(t, what+", HeapReAlloc", err)
				if n, err := thread.HeapSize(h, 0, p); n != InvalidSize || err != nil {
					t.Errorf("%s: HeapSize is %d, %v", what, n, err)
				}
				if ok, _ := thread.HeapValidate(h, 0, 0); !ok {
					t.Errorf("%s: the attempt has damaged the heap", what)
				}
				_ = space
			}
		}
	}
}

func TestForeignPointers(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	h := thread.GetProcessHeap()
	other, err := thread.HeapCreate(0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var foreign []uint64
	for i := range uint64(40) {
		for _, size := range [...]uint64{50, 2000 + 100*i, 0x100000} {
			p, err := thread.HeapAlloc(other, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			foreign = append(foreign, p)
		}
	}
	blocks := mixed(t, thread)
	for _, p := range blocks {
		foreign = append(foreign, p+16, p+8, p+1, p-16)
	}
	foreign = append(foreign, h, h+16, h+0x10000000, 16, 1<<63, ^uint64(0)-15)
	for _, p := range foreign {
		ok, err := thread.HeapFree(h, 0, p)
		if ok {
			t.Errorf("HeapFree(%#x) is true", p)
		}
		corrupted(t, fmt.Sprintf("HeapFree(%#x)", p), err)
		if ok, _ := thread.HeapValidate(h, 0, p); ok {
			t.Errorf("HeapValidate(%#x) is true", p)
		}
	}
	for _, handle := range []uint64{h, other} {
		if ok, _ := thread.HeapValidate(handle, 0, 0); !ok {
			t.Errorf("heap %#x is damaged", handle)
		}
	}
	if ok, err := thread.HeapValidate(h, 0, 0xdeadbe00); ok || err != nil {
		t.Errorf("HeapValidate of unreadable memory: %v, %v", ok, err)
	}
	_ = space
}

func TestTailAndFreeChecking(t *testing.T) {
	for _, ptr := range []int{4, 8} {
		space, thread := heapOf(t, ptr, Options{})
		h, err := thread.HeapCreate(TailChecking|FreeChecking, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for size := range uint64(40) {
			p, err := thread.HeapAlloc(h, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			change(t, space, p+size, 1) // inside the block's rounding: no header is hurt
			if ok, _ := thread.HeapValidate(h, 0, p); ok {
				t.Errorf("a write behind %d bytes is not noticed", size)
			}
			_, err = thread.HeapFree(h, 0, p)
			corrupted(t, "written behind", err)
			change(t, space, p+size, 1)
			if ok, err := thread.HeapFree(h, 0, p); !ok {
				t.Fatal(err)
			}
		}
		p, _ := thread.HeapAlloc(h, 0, 400)
		if _, err := thread.HeapFree(h, 0, p); err != nil {
			t.Fatal(err)
		}
		change(t, space, p+200, 1)
		if ok, _ := thread.HeapValidate(h, 0, 0); ok {
			t.Error("a write to a freed block is not noticed")
		}
		_, err = thread.HeapAlloc(h, 0, 400)
		corrupted(t, "HeapAlloc of a block written to while free", err)
	}
}

func TestPageHeap(t *testing.T) {
	for _, ptr := range []int{4, 8} {
		space, thread := heapOf(t, ptr, Options{GlobalFlags: GlobalFlagPageAllocs})
		h := thread.GetProcessHeap()
		unit := uint64(2 * ptr)
		var freed []uint64
		for _, size := range []uint64{1, 7, 16, 100, 4000, 4096, 70000} {
			p, err := thread.HeapAlloc(h, 0, size)
			if err != nil {
				t.Fatal(err)
			}
			if space.Write(p, make([]byte, size)) != nil {
				t.Errorf("%d bytes cannot be written", size)
			}
			end := p + alignUp(size, unit)
			if end%fakePage != 0 || !errors.Is(space.Write(end, []byte{1}), ErrAccess) {
				t.Errorf("no guard page behind %d bytes at %#x", size, p)
			}
			for _, at := range []uint64{p - 1, end - 1} {
				if at >= p && at < p+size {
					continue // no slack
				}
				change(t, space, at, 0x10)
				if ok, _ := thread.HeapValidate(h, 0, p); ok {
					t.Errorf("a write at %#x beside %d bytes at %#x is not noticed", at, size, p)
				}
				_, err := thread.HeapFree(h, 0, p)
				corrupted(t, "written beside", err)
				change(t, space, at, 0x10)
			}
			if ok, err := thread.HeapFree(h, 0, p); !ok {
				t.Fatal(err)
			}
			if !errors.Is(space.Read(p, make([]byte, 1)), ErrAccess) {
				t.Error("a freed block can be read")
			}
			freed = append(freed, p)
		}
		// Addresses do not come back soon.
		for range quarantineSlots - len(freed) {
			p, _ := thread.HeapAlloc(h, 0, 16)
			for _, q := range freed {
				if p&^0xFFFF == q&^0xFFFF {
					t.Errorf("%#x is used again at once", q)
				}
			}
			thread.HeapFree(h, 0, p)
		}
		for range 3 * quarantineSlots {
			p, _ := thread.HeapAlloc(h, 0, 16)
			thread.HeapFree(h, 0, p)
		}
		if _, _, n := space.region(0); n != 1+quarantineSlots {
			t.Errorf("%d reservations for an empty heap and %d freed blocks", n, quarantineSlots)
		}
	}
}

func TestDestroyDamaged(t *testing.T) {
	space, thread := heapOf(t, 8, Options{})
	h, _ := thread.HeapCreate(0, 0, 0)
	for range 3 {
		if _, err := thread.HeapAlloc(h, 0, 0x200000); err != nil {
			t.Fatal(err)
		}
	}
	change(t, space, h+newLayout(8, fakePage).sealed+24, 1)
	ok, err := thread.HeapDestroy(h)
	if ok {
		t.Error("HeapDestroy of a damaged heap is true")
	}
	corrupted(t, "HeapDestroy", err)
	if _, err := thread.HeapAlloc(h, 0, 1); !errors.Is(err, win32(errorInvalidHandle)) {
		t.Errorf("HeapAlloc after it: %v", err)
	}
}

// failing is a space whose writes and reads fail with an error of its own after a while.
type failing struct {
	*fakeSpace
	after int
	err   error
}

func (f *failing) Read(addr uint64, b []byte) error {
	if f.after--; f.after < 0 {
		return f.err
	}
	return f.fakeSpace.Read(addr, b)
}

func TestSpaceErrorsPassThrough(t *testing.T) {
	for n := range 30 {
		space := &failing{newFakeSpace(8), 1 << 30, errors.New("the store is gone")}
		heaps, err := New(space, Options{Random: seeded(1)})
		if err != nil {
			t.Fatal(err)
		}
		thread := heaps.Thread(context.Background())
		space.after = n
		p, err := thread.HeapAlloc(thread.GetProcessHeap(), 0, 40)
		if (p == 0) != errors.Is(err, space.err) || (err == nil && n < 10) {
			t.Fatalf("after %d reads: %#x, %v", n, p, err)
		}
	}
}

// FuzzDamage overwrites bytes of a heap, wherever they are, and goes on using it: every call ends, with a result or with
// an error of the API, and if HeapValidate still calls the heap sound, no two blocks overlap.
//
// The input: a byte of options, the damage (four bytes where, one how long, those bytes), then a byte a call.
func FuzzDamage(f *testing.F) {
	f.Add([]byte{0, 0x78, 0, 0, 0, 4, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5})
	f.Add([]byte{1, 0x90, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{2, 0, 1, 0, 0, 2, 255, 255, 0, 8, 16, 24, 32, 40, 48})
	f.Add([]byte{5, 0x10, 0x30, 0, 0, 1, 7, 6, 14, 22, 30, 38})
	for i := range byte(60) {
		f.Add([]byte{i % 8, i * 37, i, i / 20, i % 2 * 0x80, 3, i, ^i, i * 5, 0, 1, 2, 3, 4, 5, 6, 7, 8 * i, i, 9, 17, 25})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 6 {
			return
		}
		ptr, options := 8, Options{Random: seeded(7)}
		if in[0]&1 != 0 {
			ptr = 4
		}
		if in[0]&2 != 0 {
			options.GlobalFlags |= GlobalFlagTailCheck | GlobalFlagFreeCheck
		}
		if in[0]&4 != 0 {
			options.GlobalFlags |= GlobalFlagPageAllocs
		}
		_, thread := heapOf(t, ptr, options)
		space := thread.heaps.space.(*fakeSpace)
		u := &abuse{t: t, space: space, thread: thread, h: thread.GetProcessHeap(), live: map[uint64]uint64{}}
		for _, p := range mixed(t, thread) {
			n, _ := thread.HeapSize(u.h, 0, p)
			u.live[p] = n
		}
		where, in := binary.LittleEndian.Uint32(in[1:]), in[5:]
		n := min(int(in[0]%33), len(in)-1)
		u.damage(uint64(where), in[1:1+n])
		u.sound, _ = thread.HeapValidate(u.h, 0, 0)
		for _, c := range in[1+n:] {
			u.call(c)
		}
		u.call(3)
		u.call(4)
	})
}

// abuse is a damaged heap and what its user believes.
type abuse struct {
	t      *testing.T
	space  *fakeSpace
	thread *Thread
	h      uint64
	live   map[uint64]uint64
	sound  bool
}

// damage overwrites bytes of what is committed, of which where picks one, with its upper bit among the first.
func (u *abuse) damage(where uint64, b []byte) {
	u.space.mu.Lock()
	defer u.space.mu.Unlock()
	if where>>31 != 0 {
		where %= 0x8000
	}
	where %= u.space.committed
	for _, r := range u.space.regions {
		for _, page := range r.pages {
			if page == nil {
				continue
			}
			if where < fakePage {
				copy(page[where:], b)
				return
			}
			where -= fakePage
		}
	}
}

func (u *abuse) call(c byte) {
	var err error
	size := uint64(c/8) * uint64(c/8) * 8
	p := u.any(c)
	switch c % 8 {
	case 0, 1:
		var q uint64
		if q, err = u.thread.HeapAlloc(u.h, 0, size); err == nil {
			u.took(q, size)
		}
	case 2:
		if _, err = u.thread.HeapFree(u.h, 0, p); err == nil {
			delete(u.live, p)
		}
	case 3:
		_, err = u.thread.HeapValidate(u.h, 0, 0)
	case 4:
		err = u.walk()
	case 5:
		_, err = u.thread.HeapCompact(u.h, 0)
	case 6:
		var q uint64
		if q, err = u.thread.HeapReAlloc(u.h, 0, p, size*4); err == nil && p != 0 {
			delete(u.live, p)
			u.took(q, size*4)
		}
	case 7:
		var m uint64
		if m, err = u.thread.GlobalAlloc(GHND, size); err == nil {
			_, err = u.thread.GlobalReAlloc(m, 2*size, MemMoveable)
		}
	}
	var e *Error
	if err != nil && !errors.As(err, &e) && !isCorruption(err) {
		u.t.Fatalf("call %d: %v", c, err)
	}
}

func (u *abuse) took(p, size uint64) {
	for q, n := range u.live {
		if u.sound && p < q+n && q < p+size {
			u.t.Fatalf("block %#x of %d bytes overlaps block %#x of %d in a heap that was found sound", p, size, q, n)
		}
	}
	u.live[p] = size
}

// any picks a live block: the one with the lowest address above some point.
func (u *abuse) any(c byte) (p uint64) {
	for q := range u.live {
		if k := (q >> 4) % 251; p == 0 || k^uint64(c) < (p>>4)%251^uint64(c) || (k == (p>>4)%251 && q < p) {
			p = q
		}
	}
	return p
}

func (u *abuse) walk() error {
	var e ProcessHeapEntry
	for range 1 << 20 {
		if ok, err := u.thread.HeapWalk(u.h, &e); !ok {
			return err
		}
	}
	u.t.Fatal("HeapWalk does not end")
	return nil
}
