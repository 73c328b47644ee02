package mm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"memfs/mm/store"
)

func newTestPageFile(t testing.TB, max uint64, encrypt bool) (*pageFile, *store.Mem) {
	t.Helper()
	m := store.NewMem()
	p, err := newPageFile(3, PageFileConfig{Name: "test", Store: m, Max: max}, encrypt, false, &Listener{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p, m
}

func TestPageFileAlloc(t *testing.T) {
	p, _ := newTestPageFile(t, 200, false)
	if _, got := p.alloc(1); got != 0 {
		t.Fatal("a slot of a file that has none")
	}
	if by, err := p.grow(130); by != 130 || err != nil {
		t.Fatalf("grow = %d, %v", by, err)
	}
	take := func(n, wantSlot, wantGot uint64) {
		t.Helper()
		if slot, got := p.alloc(n); slot != wantSlot || got != wantGot {
			t.Fatalf("alloc(%d) = %d, %d; want %d, %d", n, slot, got, wantSlot, wantGot)
		}
	}
	take(64, 0, 64)
	take(50, 64, 50)
	take(20, 114, 16) // to the end
	take(1, 0, 0)     // full
	for _, s := range []uint64{3, 10, 11, 12, 129} {
		p.free(s)
	}
	take(3, 10, 3) // the run that fits, not the first hole
	take(5, 129, 1)
	take(5, 3, 1)
	if by, err := p.grow(1000); by != 70 || err != nil {
		t.Fatalf("grow past the maximum = %d, %v; want the 70 that are left", by, err)
	}
	take(100, 130, 70)
	if i := p.info(); i.Used != 200 || i.Size != 200 || i.Peak != 200 {
		t.Fatalf("info = %+v", i)
	}
}

func TestPageFileFreeTwicePanics(t *testing.T) {
	p, _ := newTestPageFile(t, 10, false)
	p.grow(10)
	p.alloc(1)
	p.free(0)
	defer func() {
		if recover() == nil {
			t.Error("freeing a slot twice did not panic")
		}
	}()
	p.free(0)
}

// FuzzPageFileSlots: whatever is changed in a slot behind the page file's back, reading it yields the bytes that were
// written or an error for that slot alone, never other bytes.
func FuzzPageFileSlots(f *testing.F) {
	f.Add([]byte("a page"), uint16(1), uint16(0), byte(1), false)
	f.Add([]byte{}, uint16(0), uint16(4095), byte(128), true)
	f.Add([]byte{1, 2, 3}, uint16(2), uint16(7), byte(0), true)
	f.Fuzz(func(t *testing.T, content []byte, slot, at uint16, flip byte, encrypt bool) {
		const slots = 4
		p, m := newTestPageFile(t, slots, encrypt)
		if _, err := p.grow(slots); err != nil {
			t.Fatal(err)
		}
		p.alloc(slots)
		var want [slots][]byte
		for i := range want {
			want[i] = make([]byte, PageSize)
			copy(want[i], content)
			want[i][PageSize-1] = byte(i)
		}
		if err := p.write(0, want[:]); err != nil {
			t.Fatal(err)
		}
		hit := uint64(slot % slots)
		damaged := readSlot(t, m, hit)
		damaged[at%PageSize] ^= flip
		if err := m.WriteSlots(hit, [][]byte{damaged}); err != nil {
			t.Fatal(err)
		}
		got := make([][]byte, slots)
		for i := range got {
			got[i] = make([]byte, PageSize)
		}
		errs := p.read(0, got)
		for i := range uint64(slots) {
			bad := errs != nil && errs[i] != nil
			switch {
			case bad != (i == hit && flip != 0):
				t.Fatalf("slot %d: error %v after flipping %#x in slot %d", i, errs, flip, hit)
			case !bad && !bytes.Equal(got[i], want[i]):
				t.Fatalf("slot %d: other bytes", i)
			}
		}
	})
}

// readSlot is what lies in a slot of a store, as it lies there.
func readSlot(t testing.TB, m *store.Mem, slot uint64) []byte {
	t.Helper()
	page := make([]byte, PageSize)
	if err := m.ReadSlots(slot, [][]byte{page}); err != nil {
		t.Fatal(err)
	}
	return page
}

// slowStore has a write wait until it may go on.
type slowStore struct {
	*store.Mem
	began, goOn chan struct{}
}

func (s slowStore) WriteSlots(slot uint64, bufs [][]byte) error {
	s.began <- struct{}{}
	<-s.goOn
	return s.Mem.WriteSlots(slot, bufs)
}

// TestWipeTogether: the wiper and a removal may want to overwrite the same slots; each slot is overwritten, and given back, once.
func TestWipeTogether(t *testing.T) {
	s := slowStore{store.NewMem(), make(chan struct{}), make(chan struct{})}
	p, err := newPageFile(0, PageFileConfig{Name: "test", Store: s, Max: 8, Min: 8}, false, true, &Listener{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.freed = func() {}
	slot, got := p.alloc(4)
	for i := range got {
		p.free(slot + i)
	}
	first := make(chan uint64)
	go func() { first <- p.wipe(8, make([]byte, PageSize)) }()
	<-s.began
	second := make(chan uint64)
	go func() { second <- p.wipe(8, make([]byte, PageSize)) }()
	select {
	case <-s.began:
		t.Error("slots are overwritten by two")
		s.goOn <- struct{}{}
	case n := <-second:
		if n != 0 {
			t.Errorf("the second one overwrote %d slots", n)
		}
	}
	s.goOn <- struct{}{}
	if n := <-first; n != got {
		t.Errorf("overwrote %d slots, not %d", n, got)
	}
	if i := p.info(); i.Wiping != 0 || !p.empty() {
		t.Errorf("afterwards: %+v", i)
	}
}

// TestGrowRemoved: whoever still knows a page file that has been removed neither makes it grow nor shrink in the books.
func TestGrowRemoved(t *testing.T) {
	m := newPagedMachine(t, Config{}, 64, [2]uint64{1000, 0}, [2]uint64{1000, 0})
	m.write(0, 299)
	group := m.s.files.order()[0]
	f := group[1]
	if _, err := m.s.RemovePageFile(f.index); err != nil {
		t.Fatal(err)
	}
	grown := func() uint64 {
		m.s.commit.mu.Lock()
		defer m.s.commit.mu.Unlock()
		return m.s.commit.grown
	}
	was := grown()
	m.s.commit.shrink(f)
	m.s.commit.shrink(f)
	if now := grown(); now != was {
		t.Errorf("shrinking: %d slots were there, now %d", was, now)
	}
	size := group[0].info().Size
	m.s.commit.growing <- struct{}{}
	m.s.commit.growGroup(group, 64)
	<-m.s.commit.growing
	if now, by := grown(), group[0].info().Size-size; now != was+by {
		t.Errorf("growing: %d slots were there, %d came to the file that is left, now there are %d", was, by, now)
	}
	m.expect(0, 299)
	m.close()
}

// bothGuards runs a test with plain and with encrypted page files of two slots, both in use.
func bothGuards(t *testing.T, test func(t *testing.T, p *pageFile, m *store.Mem)) {
	for name, encrypt := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			p, m := newTestPageFile(t, 2, encrypt)
			if _, err := p.grow(2); err != nil {
				t.Fatal(err)
			}
			p.alloc(2)
			test(t, p, m)
		})
	}
}

// TestMisplacedPage: a page that comes back from another slot is an error, though its bytes are whole.
func TestMisplacedPage(t *testing.T) {
	bothGuards(t, func(t *testing.T, p *pageFile, m *store.Mem) {
		a, b := bytes.Repeat([]byte{1}, PageSize), bytes.Repeat([]byte{2}, PageSize)
		if err := p.write(0, [][]byte{a, b}); err != nil {
			t.Fatal(err)
		}
		if err := m.WriteSlots(0, [][]byte{readSlot(t, m, 1), readSlot(t, m, 0)}); err != nil {
			t.Fatal(err)
		}
		errs := p.read(0, [][]byte{make([]byte, PageSize), make([]byte, PageSize)})
		if errs == nil || !errors.Is(errs[0], errChecksum) || !errors.Is(errs[1], errChecksum) {
			t.Fatalf("swapped pages read as %v", errs)
		}
	})
}

// TestOldPage: what was in a slot before it was written anew is an error, not the page of then.
func TestOldPage(t *testing.T) {
	bothGuards(t, func(t *testing.T, p *pageFile, m *store.Mem) {
		if err := p.write(0, [][]byte{bytes.Repeat([]byte{1}, PageSize)}); err != nil {
			t.Fatal(err)
		}
		old := readSlot(t, m, 0)
		if err := p.write(0, [][]byte{bytes.Repeat([]byte{2}, PageSize)}); err != nil {
			t.Fatal(err)
		}
		if err := m.WriteSlots(0, [][]byte{old}); err != nil {
			t.Fatal(err)
		}
		if errs := p.read(0, [][]byte{make([]byte, PageSize)}); errs == nil || !errors.Is(errs[0], errChecksum) {
			t.Fatalf("an old page reads as %v", errs)
		}
	})
}

// TestEncryptedPageFile: nothing of a page is to be found in the store, the same page never looks the same twice, and
// the key leaves nothing behind.
func TestEncryptedPageFile(t *testing.T) {
	p, m := newTestPageFile(t, 2, true)
	if _, err := p.grow(2); err != nil {
		t.Fatal(err)
	}
	p.alloc(2)
	page := bytes.Repeat([]byte("secret! "), PageSize/8)
	given := bytes.Clone(page)
	if err := p.write(0, [][]byte{page, page}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, given) {
		t.Error("writing changed the page")
	}
	a, b := readSlot(t, m, 0), readSlot(t, m, 1)
	if bytes.Contains(a, []byte("secret")) || bytes.Equal(a, b) {
		t.Error("the store shows what was written")
	}
	if err := p.write(0, [][]byte{page}); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, readSlot(t, m, 0)) {
		t.Error("the same page in the same slot looks the same again: a nonce was used twice")
	}
	got := [][]byte{make([]byte, PageSize), make([]byte, PageSize)}
	if errs := p.read(0, got); errs != nil || !bytes.Equal(got[0], page) || !bytes.Equal(got[1], page) {
		t.Fatalf("reading back: %v", errs)
	}
	known := slices.Clone(p.guard.(*sealer).locked)
	p.guard.(*sealer).wipe()
	for _, b := range known {
		if slices.ContainsFunc(b, func(b byte) bool { return b != 0 }) {
			t.Error("something of the key is left")
		}
	}
}

// TestKeyIsLocked: the memory that knows the key is locked.
func TestKeyIsLocked(t *testing.T) {
	before := lockedBytes(t)
	p, _ := newTestPageFile(t, 2, true)
	if after := lockedBytes(t); after == 0 || len(p.guard.(*sealer).locked) != 2 {
		t.Errorf("%d bytes locked before, %d after; %d objects", before, after, len(p.guard.(*sealer).locked))
	}
}

// lockedBytes is how much of this process's memory is locked.
func lockedBytes(t *testing.T) (kib uint64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmLck:"); ok {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatal(err)
			}
		}
	}
	return kib << 10
}

// BenchmarkGuard is what it costs to write and to read a page, the store's own work not counted.
func BenchmarkGuard(b *testing.B) {
	for name, encrypt := range map[string]bool{"plain": false, "encrypted": true} {
		g, err := newGuard(0, 256, encrypt)
		if err != nil {
			b.Fatal(err)
		}
		pages := make([][]byte, 256)
		for i := range pages {
			pages[i] = alignedPage()
		}
		b.Run(name+"/seal", func(b *testing.B) {
			b.SetBytes(256 * PageSize)
			for b.Loop() {
				g.release(g.seal(0, pages))
			}
		})
		b.Run(name+"/open", func(b *testing.B) {
			b.SetBytes(PageSize)
			sealed := g.seal(0, pages)
			page := alignedPage()
			for b.Loop() {
				copy(page, sealed[0])
				if err := g.open(0, page); err != nil {
					b.Fatal(err)
				}
			}
		})
		_ = g.close()
	}
}
