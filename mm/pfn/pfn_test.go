package pfn

import (
	"fmt"
	"strings"
	"testing"
)

// wantTable is the state machine said once more, independently of the table's own spelling: from each state, what each
// event leads to. What is not here is illegal.
const wantTable = `
Retired          Enlist→Zeroed
Zeroed           Allocate→Transition Retire→Retired Condemn→Bad
Free             Allocate→Transition Retire→Retired Condemn→Bad
Standby          Allocate→Transition MakeValid→Active Release→Free
Modified         MakeValid→Active PageOut→Transition Release→Free
ModifiedNoWrite  MakeValid→Active Release→Free
Transition       MakeValid→Active SettleClean→Standby SettleDirty→Modified SettleNoWrite→ModifiedNoWrite Release→Free MadeZero→Zeroed Retire→Retired Condemn→Bad
Active           Steal→Transition TrimClean→Standby TrimDirty→Modified TrimBusy→Transition TrimNoWrite→ModifiedNoWrite Release→Free
Bad
`

func TestStateTable(t *testing.T) {
	want := make(map[string]string)
	for line := range strings.Lines(strings.TrimSpace(wantTable)) {
		f := strings.Fields(line)
		for _, e := range f[1:] {
			ev, to, _ := strings.Cut(e, "→")
			want[f[0]+" "+ev] = to
		}
	}
	seen := 0
	for s := State(0); s < numStates; s++ {
		for e := Event(0); e < numEvents; e++ {
			next, ok := Next(s, e)
			to, legal := want[fmt.Sprintf("%v %v", s, e)]
			switch {
			case ok != legal:
				t.Errorf("%v in %v: legal=%v, want %v", e, s, ok, legal)
			case ok && next.String() != to:
				t.Errorf("%v in %v leads to %v, want %v", e, s, next, to)
			}
			if ok {
				seen++
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d legal transitions, want %d", seen, len(want))
	}
	if _, ok := Next(numStates, Allocate); ok {
		t.Error("a state outside the table is legal")
	}
	if _, ok := Next(Free, numEvents); ok {
		t.Error("an event outside the table is legal")
	}
}

// +checklocksignore
func TestIllegalTransitionPanics(t *testing.T) {
	for s := State(0); s < numStates; s++ {
		for e := Event(0); e < numEvents; e++ {
			if _, ok := Next(s, e); ok {
				continue
			}
			d := newTest(t, 4, nil)
			d.Lock()
			force(d, 1, s)
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%v in %v did not panic", e, s)
					}
				}()
				d.apply(1, e)
			}()
			d.Unlock()
		}
	}
}

func newTest(t *testing.T, n uint64, restore func(owner, original uint64, why Departure)) *Database {
	t.Helper()
	d, err := New(n, n, Owner{Restore: restore})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// force puts f into a state by whatever path the table offers.
// +checklocks:d.mu
func force(d *Database, f Frame, s State) {
	path := map[State][]Event{
		Zeroed: {}, Transition: {Allocate}, Active: {Allocate, MakeValid}, Free: {Allocate, Release},
		Standby: {Allocate, SettleClean}, Modified: {Allocate, SettleDirty}, Bad: {Condemn},
		Retired:         {Retire},
		ModifiedNoWrite: {Allocate, MakeValid, TrimNoWrite},
	}[s]
	for _, e := range path {
		d.apply(f, e)
	}
}

// +checklocks:d.mu
func (d *Database) mustCheck(t *testing.T) {
	t.Helper()
	for _, err := range d.Check() {
		t.Error(err)
	}
}

// TestLife follows one frame through demand zero, trim, page-out, soft fault, repurpose.
// +checklocksignore
func TestLife(t *testing.T) {
	var gave []string
	d := newTest(t, 2, func(owner, original uint64, _ Departure) { gave = append(gave, fmt.Sprintf("%d:%d", owner, original)) })
	d.Lock()
	step := func(what string, f Frame, want State) {
		t.Helper()
		if got := d.Info(f).State; got != want {
			t.Fatalf("%s: state %v, want %v", what, got, want)
		}
		d.mustCheck(t)
	}
	f, zeroed := d.Alloc(0, 7, 0, true, 0)
	if f == 0 || !zeroed {
		t.Fatalf("Alloc = %d, %v", f, zeroed)
	}
	step("allocate", f, Transition)
	d.MakeValid(f)
	if stale := d.SetDirty(f); stale != 0 {
		t.Fatalf("a new page had a copy at %d", stale)
	}
	d.Unpin(f)
	step("demand zero", f, Active)
	d.Trim(f)
	step("trim dirty", f, Modified)
	if got := d.NextModified(0); got != f {
		t.Fatalf("NextModified = %d, want %d", got, f)
	}
	step("page-out", f, Transition)
	if !d.EndWrite(f, 99) {
		t.Fatal("the slot of an undisturbed page-out is not kept")
	}
	step("written", f, Standby)
	d.MakeValid(f)
	step("soft fault", f, Active)
	d.Trim(f)
	step("trim clean", f, Standby)
	// The other frame first, then this one is repurposed.
	a, _ := d.Alloc(0, 8, 0, false, 0)
	b, zeroed := d.Alloc(0, 9, 0, false, 0)
	if a == f || b != f || zeroed {
		t.Fatalf("allocated %d and %d (zeroed %v), want the free frame and then %d", a, b, zeroed, f)
	}
	if len(gave) != 1 || gave[0] != "7:99" {
		t.Fatalf("given back: %v, want 7:99", gave)
	}
	if c, _ := d.Alloc(0, 10, 0, false, 0); c != 0 {
		t.Fatalf("frame %d came from nowhere", c)
	}
	d.Unlock()
}

// TestStoreDuringPageOut: bytes stored while the frame is being written must not be taken for written.
// +checklocksignore
func TestStoreDuringPageOut(t *testing.T) {
	for _, trimmedAgain := range []bool{false, true} {
		d := newTest(t, 1, nil)
		d.Lock()
		f, _ := d.Alloc(0, 1, 0, false, 0)
		d.MakeValid(f)
		d.SetDirty(f)
		d.Unpin(f)
		d.Trim(f)
		d.NextModified(0)
		d.MakeValid(f) // touched,
		d.SetDirty(f)  // and stored into
		if trimmedAgain {
			d.Trim(f)
		}
		if d.EndWrite(f, 5) {
			t.Error("a slot written before the last store was kept")
		}
		want := Active
		if trimmedAgain {
			want = Modified
		}
		if i := d.Info(f); i.State != want || !i.Dirty {
			t.Errorf("after the page-out: %+v, want dirty and %v", i, want)
		}
		d.mustCheck(t)
		d.Unlock()
	}
}

// TestDeleteWhilePinned: a deleted page's frame must not be reused before the last reply is sent from it.
func TestDeleteWhilePinned(t *testing.T) {
	d := newTest(t, 1, nil)
	d.Lock()
	f, _ := d.Alloc(0, 1, 0, false, 0)
	d.MakeValid(f)
	d.SetDirty(f)
	d.Release(f) // pinned by Alloc's reference
	if g, _ := d.Alloc(0, 2, 0, false, 0); g != 0 {
		t.Fatal("a pinned frame was handed out")
	}
	d.mustCheck(t)
	d.Unpin(f)
	if i := d.Info(f); i.State != Free {
		t.Fatalf("after the last pin: %+v", i)
	}
	d.mustCheck(t)
	d.Unlock()
}

// TestSteal: with nothing free and nothing on standby, a clean Active page gives up its frame; dirty and pinned ones do not.
func TestSteal(t *testing.T) {
	var gave []uint64
	d := newTest(t, 3, func(owner, original uint64, _ Departure) { gave = append(gave, owner) })
	d.Lock()
	for owner := uint64(1); owner <= 3; owner++ {
		f, _ := d.Alloc(0, owner, owner+100, false, 0)
		d.MakeValid(f)
		switch owner {
		case 1: // stays pinned
			continue
		case 2:
			d.SetDirty(f)
		}
		d.Unpin(f)
	}
	if f, _ := d.Alloc(0, 9, 0, false, 0); f == 0 || len(gave) != 1 || gave[0] != 3 {
		t.Fatalf("Alloc = %d, taken from %v; want the clean unpinned page of 3", f, gave)
	}
	if f, _ := d.Alloc(0, 9, 0, false, 0); f != 0 {
		t.Fatal("a dirty or pinned page gave up its frame")
	}
	d.mustCheck(t)
	d.Unlock()
}

// TestShrink takes the upper half of a database away with a page of each kind in it, pinned ones included, and proves
// that the pages are in the lower half with all that is known of them, that the last pin lets the rest go, and that what
// is taken back in is zeros.
// +checklocksignore
func TestShrink(t *testing.T) {
	const low, high = 8, 16
	at := map[uint64]Frame{} // by owner
	var d *Database
	d, err := New(high, 2*high, Owner{
		Restore: func(owner, original uint64, _ Departure) { delete(at, owner) },
		Moved:   func(owner uint64, to Frame) { at[owner] = to },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Lock()
	defer d.Unlock()
	for owner := uint64(1); owner <= low; owner++ { // the lower frames, all to be freed again but the last
		at[owner], _ = d.Alloc(0, owner, 0, false, 0)
	}
	make := func(owner, original uint64, state State) {
		f, _ := d.Alloc(0, owner, original, false, 0)
		at[owner] = f
		d.Bytes(f)[0] = byte(owner)
		d.MakeValid(f)
		if original == 0 {
			d.SetDirty(f)
		}
		d.Unpin(f)
		if state != Active {
			d.Trim(f)
		}
		if got := d.Info(f); got.State != state || f <= low {
			t.Fatalf("page %d is %v in frame %d, want %v above %d", owner, got.State, f, state, low)
		}
	}
	make(101, 0, Active)
	make(102, 202, Active)
	make(103, 0, Modified)
	make(104, 204, Standby)
	make(105, 0, Modified)
	make(106, 206, Active)
	d.Pin(at[106])
	record := d.TakeRecord()
	for owner := uint64(1); owner < low; owner++ {
		d.Release(at[owner])
		d.Unpin(at[owner])
	}
	last := d.NextFree() // under the zero-page thread
	d.mustCheck(t)

	d.SetLimit(low)
	var w Shrinking
	shrink := func() {
		for ended := false; !ended; {
			var short bool
			if ended, short = d.Shrink(&w, 3, 0); short {
				t.Fatal("no frame was to be had, though seven were free")
			}
			for _, f := range w.Moved {
				record = f
			}
			d.mustCheck(t)
		}
	}
	shrink()
	for owner, want := range map[uint64]State{101: Active, 102: Active, 103: Modified, 104: Standby, 105: Modified} {
		f := at[owner]
		i := d.Info(f)
		if f > low || i.State != want || i.Owner != owner || d.Bytes(f)[0] != byte(owner) || i.Refs != 0 ||
			i.Original != 0 != (owner == 102 || owner == 104) || i.Dirty == (i.Original != 0) {
			t.Errorf("page %d is in frame %d: %+v, want %v", owner, f, i, want)
		}
	}
	if d.NextModified(0) != at[103] || d.NextModified(0) != at[105] {
		t.Error("the modified pages have changed places")
	}
	if i := d.Info(record); record > low || !i.Record {
		t.Errorf("the record frame is %d: %+v", record, i)
	}
	pinned := at[106]
	if i := d.Info(pinned); pinned <= low || i.State != Active || i.Refs != 1 {
		t.Errorf("a pinned page was moved: frame %d, %+v", pinned, i)
	}
	if _, got := d.Lower(high); got != high-int(pinned) || d.Frames() != low+1 {
		t.Errorf("%d frames were let go with frame %d pinned, %d are in use", got, pinned, d.Frames())
	}
	d.ZeroDone(last)
	d.Unpin(pinned)
	d.EndWrite(at[103], 203)
	d.EndWrite(at[105], 205)
	d.mustCheck(t)
	shrink()
	first, got := d.Lower(high)
	if first != low+1 || d.Top() != low || d.Frames() != low || at[106] > low && d.Info(at[106]).State != Active {
		t.Errorf("%d frames from %d were let go, %d are in use", got, first, d.Frames())
	}
	d.Drop(first, high-low)
	d.mustCheck(t)

	d.SetLimit(2 * high)
	for f, n := d.NextRetired(1, 5); n > 0; f, n = d.NextRetired(f, 5) {
		if f <= low {
			t.Fatalf("frame %d, in use, is to be taken in", f)
		}
		d.Enlist(f, n)
	}
	d.mustCheck(t)
	for n := d.Frames(); n > low; n-- {
		f, zeroed := d.Alloc(0, n, 0, true, 0)
		if !zeroed || d.Bytes(f)[0] != 0 {
			t.Fatalf("frame %d, taken back in: zeroed %v, first byte %d", f, zeroed, d.Bytes(f)[0])
		}
	}
}
