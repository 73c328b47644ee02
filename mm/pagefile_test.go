package mm

import (
	"bytes"
	"errors"
	"testing"

	"memfs/mm/store"
)

func newTestPageFile(t testing.TB, max uint64) (*pageFile, *store.Mem) {
	t.Helper()
	m := store.NewMem()
	p, err := newPageFile(3, PageFileConfig{Name: "test", Store: m, Max: max}, &Listener{})
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
	p, _ := newTestPageFile(t, 200)
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
	p, _ := newTestPageFile(t, 10)
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
	f.Add([]byte("a page"), uint16(1), uint16(0), byte(1))
	f.Add([]byte{}, uint16(0), uint16(4095), byte(128))
	f.Add([]byte{1, 2, 3}, uint16(2), uint16(7), byte(0))
	f.Fuzz(func(t *testing.T, content []byte, slot, at uint16, flip byte) {
		const slots = 4
		p, m := newTestPageFile(t, slots)
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
		damaged := bytes.Clone(want[hit])
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

// TestMisplacedPage: a page that comes back from another slot is an error, though its bytes are whole.
func TestMisplacedPage(t *testing.T) {
	p, m := newTestPageFile(t, 2)
	p.grow(2)
	p.alloc(2)
	a, b := bytes.Repeat([]byte{1}, PageSize), bytes.Repeat([]byte{2}, PageSize)
	if err := p.write(0, [][]byte{a, b}); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteSlots(0, [][]byte{b, a}); err != nil {
		t.Fatal(err)
	}
	errs := p.read(0, [][]byte{make([]byte, PageSize), make([]byte, PageSize)})
	if errs == nil || !errors.Is(errs[0], errChecksum) || !errors.Is(errs[1], errChecksum) {
		t.Fatalf("swapped pages read as %v", errs)
	}
}
