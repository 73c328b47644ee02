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

func newTest(t *testing.T, n uint64, restore func(owner, original uint64)) *Database {
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
	d := newTest(t, 2, func(owner, original uint64) { gave = append(gave, fmt.Sprintf("%d:%d", owner, original)) })
	d.Lock()
	step := func(what string, f Frame, want State) {
		t.Helper()
		if got := d.Info(f).State; got != want {
			t.Fatalf("%s: state %v, want %v", what, got, want)
		}
		d.mustCheck(t)
	}
	f, zeroed := d.Alloc(7, 0, true, 0)
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
	a, _ := d.Alloc(8, 0, false, 0)
	b, zeroed := d.Alloc(9, 0, false, 0)
	if a == f || b != f || zeroed {
		t.Fatalf("allocated %d and %d (zeroed %v), want the free frame and then %d", a, b, zeroed, f)
	}
	if len(gave) != 1 || gave[0] != "7:99" {
		t.Fatalf("given back: %v, want 7:99", gave)
	}
	if c, _ := d.Alloc(10, 0, false, 0); c != 0 {
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
		f, _ := d.Alloc(1, 0, false, 0)
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
	f, _ := d.Alloc(1, 0, false, 0)
	d.MakeValid(f)
	d.SetDirty(f)
	d.Release(f) // pinned by Alloc's reference
	if g, _ := d.Alloc(2, 0, false, 0); g != 0 {
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
	d := newTest(t, 3, func(owner, original uint64) { gave = append(gave, owner) })
	d.Lock()
	for owner := uint64(1); owner <= 3; owner++ {
		f, _ := d.Alloc(owner, owner+100, false, 0)
		d.MakeValid(f)
		switch owner {
		case 1: // stays pinned
			continue
		case 2:
			d.SetDirty(f)
		}
		d.Unpin(f)
	}
	if f, _ := d.Alloc(9, 0, false, 0); f == 0 || len(gave) != 1 || gave[0] != 3 {
		t.Fatalf("Alloc = %d, taken from %v; want the clean unpinned page of 3", f, gave)
	}
	if f, _ := d.Alloc(9, 0, false, 0); f != 0 {
		t.Fatal("a dirty or pinned page gave up its frame")
	}
	d.mustCheck(t)
	d.Unlock()
}
