package process

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"memfs/mm"
	"memfs/mm/store"

	"pgregory.net/rapid"
)

func newSystem(t interface{ Fatal(...any) }, frames, slots uint64) *mm.System {
	b := mm.Budget{
		Memory: 64 << 20, Frames: frames, HostBytes: 64 * mm.PageSize, PageFile: slots, CommitLimit: frames + slots,
	}
	s, err := mm.NewFromBudget(b, mm.Config{PageFiles: []mm.PageFileConfig{{Name: "test", Store: store.NewMem(), Max: slots}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// modelPage is what a page ought to be, said without runs, holds or trees: one map entry a page.
type modelPage struct {
	base       uint64 // of its allocation
	allocation Protection
	committed  bool
	protection Protection
	bytes      []byte // nil = zeros
	watched    bool
	dirty      bool
	latched    bool // dirty when a VirtualProtect came by: outlasts a decommit
}

// model is a process of pages, and a machine for rapid.
type model struct {
	p     *Process
	sys   *mm.System
	pages map[uint64]*modelPage

	twin   *Process
	copies map[uint64][]byte // that it has, by address
}

// The model works in a window of a few slots, so that allocations meet.
const (
	windowBase  = 0x40000000 >> pageShift
	windowPages = 5 * slotPages
)

func protections() *rapid.Generator[Protection] {
	return rapid.Custom(func(t *rapid.T) Protection {
		p := rapid.SampledFrom([]Protection{NoAccess, ReadOnly, ReadWrite, ReadWrite, ReadWrite, Execute, ExecuteRead,
			ExecuteReadWrite}).Draw(t, "base")
		if p != NoAccess && rapid.IntRange(0, 4).Draw(t, "guard") == 0 {
			p |= Guard
		}
		return p
	})
}

func (m *model) span(t *rapid.T, most int) (first, last uint64) {
	first = windowBase + uint64(rapid.IntRange(0, windowPages-1).Draw(t, "first"))
	return first, min(first+uint64(rapid.IntRange(0, most).Draw(t, "more")), windowBase+windowPages-1)
}

func (m *model) one(first, last uint64) bool {
	b := m.pages[first]
	for page := first; page <= last; page++ {
		if o := m.pages[page]; o == nil || b == nil || o.base != b.base {
			return false
		}
	}
	return true
}

// want compares an error with the one that the model expects.
func want(t *rapid.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func (m *model) Reserve(t *rapid.T) {
	first, last := m.span(t, 40)
	prot := protections().Draw(t, "protection")
	typ := uint32(MemReserve)
	commit := rapid.Bool().Draw(t, "commit")
	watch := rapid.IntRange(0, 3).Draw(t, "watch") == 0
	if commit {
		typ |= MemCommit
	}
	if watch {
		typ |= MemWriteWatch
	}
	base := first &^ (slotPages - 1)
	var wanted error
	for page := base; page <= last|(slotPages-1); page++ {
		if m.pages[page] != nil {
			wanted = InvalidAddress
		}
	}
	got, err := m.p.Alloc(first<<pageShift, (last-first+1)<<pageShift, typ, prot)
	want(t, "reserve", err, wanted)
	if err != nil {
		return
	}
	if got != base<<pageShift {
		t.Fatalf("reserved at %#x, want %#x", got, base<<pageShift)
	}
	for page := base; page <= last; page++ {
		m.pages[page] = &modelPage{base: base, allocation: prot, watched: watch}
		if commit {
			m.pages[page].committed, m.pages[page].protection = true, prot
		}
	}
}

func (m *model) Commit(t *rapid.T) {
	first, last := m.span(t, 20)
	prot := protections().Draw(t, "protection")
	var wanted error
	if !m.one(first, last) {
		wanted = InvalidAddress
	}
	_, err := m.p.Alloc(first<<pageShift, (last-first+1)<<pageShift, MemCommit, prot)
	want(t, "commit", err, wanted)
	if err != nil {
		return
	}
	for page := first; page <= last; page++ {
		m.pages[page].committed, m.pages[page].protection = true, prot
	}
}

func (m *model) Protect(t *rapid.T) {
	first, last := m.span(t, 20)
	prot := protections().Draw(t, "protection")
	var wanted error
	if !m.one(first, last) {
		wanted = InvalidAddress
	} else {
		for page := first; page <= last; page++ {
			if !m.pages[page].committed {
				wanted = InvalidAddress
			}
		}
	}
	old, err := m.p.Protect(first<<pageShift, (last-first+1)<<pageShift, prot)
	want(t, "protect", err, wanted)
	if err != nil {
		return
	}
	if old != m.pages[first].protection {
		t.Fatalf("old protection %v, want %v", old, m.pages[first].protection)
	}
	for page := first; page <= last; page++ {
		o := m.pages[page]
		o.protection, o.latched = prot, o.dirty
	}
}

func (m *model) Decommit(t *rapid.T) {
	first, last := m.span(t, 20)
	var wanted error
	switch {
	case m.pages[first] == nil:
		wanted = InvalidAddress
	case !m.one(first, last):
		wanted = InvalidParameter
	}
	err := m.p.Free(first<<pageShift, (last-first+1)<<pageShift, MemDecommit)
	want(t, "decommit", err, wanted)
	if err != nil {
		return
	}
	for page := first; page <= last; page++ {
		o := m.pages[page]
		m.pages[page] = &modelPage{
			base: o.base, allocation: o.allocation, watched: o.watched, dirty: o.latched, latched: o.latched,
		}
	}
}

func (m *model) Release(t *rapid.T) {
	first, _ := m.span(t, 0)
	o := m.pages[first]
	var wanted error
	if o == nil || o.base != first {
		wanted = InvalidAddress
		if o != nil && rapid.Bool().Draw(t, "base") {
			first, wanted = o.base, nil
		}
	}
	want(t, "release", m.p.Free(first<<pageShift, 0, MemRelease), wanted)
	if wanted != nil {
		return
	}
	for page, o := range m.pages {
		if o.base == first {
			delete(m.pages, page)
		}
	}
}

// fault is the exception that the model expects of an access, nil if none; it disarms a guard page that goes off.
func (m *model) fault(k Kind, addr uint64, n int) *Exception {
	for page := addr >> pageShift; page <= (addr+uint64(n)-1)>>pageShift; page++ {
		at := max(addr, page<<pageShift)
		o := m.pages[page]
		if o == nil || !o.committed {
			return &Exception{StatusAccessViolation, k, at}
		}
		if o.protection&Guard != 0 {
			o.protection &^= Guard
			return &Exception{StatusGuardPageViolation, k, at}
		}
		var ok bool
		switch o.protection {
		case ReadOnly, ExecuteRead, Execute:
			ok = k == Read || k == Fetch && o.protection != ReadOnly
		case ReadWrite:
			ok = k != Fetch
		case ExecuteReadWrite:
			ok = true
		}
		if !ok {
			return &Exception{StatusAccessViolation, k, at}
		}
	}
	return nil
}

func (m *model) outcome(t *rapid.T, what string, err error, wanted *Exception) bool {
	t.Helper()
	var e *Exception
	switch {
	case wanted == nil && err != nil:
		t.Fatalf("%s: %v, want none", what, err)
	case wanted != nil && (!errors.As(err, &e) || *e != *wanted):
		t.Fatalf("%s: %v, want %v", what, err, wanted)
	}
	return wanted == nil
}

func (m *model) address(t *rapid.T) (uint64, int) {
	first, _ := m.span(t, 0)
	addr := first<<pageShift + uint64(rapid.SampledFrom([]int{0, 1, 100, PageSize - 2, PageSize - 1}).Draw(t, "offset"))
	return addr, rapid.SampledFrom([]int{1, 4, 16, PageSize, 3 * PageSize, 9*PageSize + 5}).Draw(t, "bytes")
}

func (m *model) Write(t *rapid.T) {
	addr, n := m.address(t)
	data := bytes.Repeat([]byte{byte(rapid.IntRange(1, 4).Draw(t, "byte"))}, n) // so few that there is something to combine
	wanted := m.fault(Write, addr, n)
	if !m.outcome(t, "write", m.p.Write(addr, data), wanted) {
		return
	}
	for i := 0; i < n; {
		o, at := m.pages[(addr+uint64(i))>>pageShift], int(addr+uint64(i))%PageSize
		if o.bytes == nil {
			o.bytes = make([]byte, PageSize)
		}
		i += copy(o.bytes[at:], data[i:])
		o.dirty = o.watched
	}
}

func (m *model) Read(t *rapid.T) {
	addr, n := m.address(t)
	got := make([]byte, n)
	wanted := m.fault(Read, addr, n)
	if !m.outcome(t, "read", m.p.Read(addr, got), wanted) {
		return
	}
	for i := 0; i < n; i++ {
		o, at := m.pages[(addr+uint64(i))>>pageShift], int(addr+uint64(i))%PageSize
		var b byte
		if o.bytes != nil {
			b = o.bytes[at]
		}
		if got[i] != b {
			t.Fatalf("read at %#x: byte %d is %#x, want %#x", addr, i, got[i], b)
		}
	}
}

func (m *model) Execute(t *rapid.T) {
	addr, _ := m.address(t)
	wanted := m.fault(Fetch, addr, 1)
	m.outcome(t, "execute", m.p.Execute(addr), wanted)
}

func (m *model) Watch(t *rapid.T) {
	first, last := m.span(t, 20)
	var wanted error
	if !m.one(first, last) || !m.pages[first].watched {
		wanted = InvalidParameter
	}
	most := rapid.IntRange(1, 10).Draw(t, "count")
	got, err := m.p.GetWriteWatch(WatchReset, first<<pageShift, (last-first+1)<<pageShift, most)
	want(t, "watch", err, wanted)
	if err != nil {
		return
	}
	var dirty []uint64
	for page := first; page <= last && len(dirty) < most; page++ {
		if o := m.pages[page]; o.dirty {
			o.dirty, o.latched = false, false
			dirty = append(dirty, page<<pageShift)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(dirty) {
		t.Fatalf("written pages %x, want %x", got, dirty)
	}
}

func (m *model) Trim(t *rapid.T) { m.p.EmptyWorkingSet() }

func (m *model) PageOut(t *rapid.T) {
	m.p.EmptyWorkingSet()
	if _, err := m.sys.FlushModified(); err != nil {
		t.Fatal(err)
	}
	m.sys.EmptyStandby()
}

// Combine has pages of the same bytes share frames, which nobody can tell.
func (m *model) Combine(t *rapid.T) {
	if _, err := m.sys.Combine(); err != nil {
		t.Fatal(err)
	}
}

// Twin copies a page to another process, for Combine to find. What becomes of the page is nothing to the copy.
func (m *model) Twin(t *rapid.T) {
	first, _ := m.span(t, 0)
	o := m.pages[first]
	if o == nil || o.bytes == nil {
		return
	}
	at := twinBase + uint64(rapid.IntRange(0, twinPages-1).Draw(t, "twin"))<<pageShift
	if err := m.twin.Write(at, o.bytes); err != nil {
		t.Fatal(err)
	}
	m.copies[at] = bytes.Clone(o.bytes)
}

// The copies are in a process of their own.
const (
	twinBase  = 0x50000000
	twinPages = 8
)

func (m *model) startTwin(t *rapid.T) {
	var err error
	if m.twin, err = m.p.machine.Start(Image{Arch: X64}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.twin.Alloc(twinBase, twinPages<<pageShift, MemReserve|MemCommit, ReadWrite); err != nil {
		t.Fatal(err)
	}
	m.copies = make(map[uint64][]byte)
}

func (m *model) checkTwin(t *rapid.T) {
	b := make([]byte, PageSize)
	for at, want := range m.copies {
		if err := m.twin.Read(at, b); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("the copy at %#x has changed, %v", at, err)
		}
	}
}

func (m *model) Lock(t *rapid.T) {
	first, _ := m.span(t, 0)
	if wanted := m.fault(Read, first<<pageShift, 1); wanted == nil {
		want(t, "lock", m.p.Lock(first<<pageShift, 1), nil)
		if f := m.p.WorkingSetEx(first << pageShift); !f.Valid || !f.Locked {
			t.Fatalf("a locked page is %+v", f)
		}
		want(t, "unlock", m.p.Unlock(first<<pageShift, 1), nil)
	} else if err := m.p.Lock(first<<pageShift, 1); err == nil {
		t.Fatalf("a page that cannot be touched was locked")
	}
}

// Check compares every page with what VirtualQuery says of it, and has the memory manager check itself.
func (m *model) Check(t *rapid.T) {
	for _, err := range append(m.sys.Check(), m.p.machine.Check()...) {
		t.Fatal(err)
	}
	var committed uint64
	for page := uint64(windowBase); page < windowBase+windowPages; {
		r, err := m.p.Query(page << pageShift)
		if err != nil {
			t.Fatal(err)
		}
		end := min(page+r.RegionSize>>pageShift, windowBase+windowPages)
		for first := page; page < end; page++ {
			o, w := m.pages[page], Region{State: StateFree, Protect: NoAccess}
			if o != nil {
				w = Region{AllocationBase: o.base << pageShift, AllocationProtect: o.allocation, State: StateReserve, Type: TypePrivate}
				if o.committed {
					w.State, w.Protect = StateCommit, o.protection
					committed++
				}
			}
			w.BaseAddress, w.RegionSize = first<<pageShift, r.RegionSize
			if r != w {
				t.Fatalf("page %#x: %+v, want %+v", page, r, w)
			}
		}
		if next := m.pages[page]; page < windowBase+windowPages && next != nil {
			if a, b := m.pages[page-1], next; a != nil && a.base == b.base && a.committed == b.committed &&
				a.protection == b.protection {
				t.Fatalf("region ends at %#x, but the next page is alike", page)
			}
		}
	}
	if got := m.p.MemoryInfo().Private >> pageShift; got != committed {
		t.Fatalf("%d pages of commit, want %d", got, committed)
	}
}

// TestModel does random calls on a process and on the model, on a machine whose frames are a fraction of the pages.
func TestModel(t *testing.T) {
	for _, frames := range []uint64{24, 400} {
		t.Run(fmt.Sprint(frames), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				sys := newSystem(t, frames, 512)
				machine := NewMachine(sys, OptIn, Listener{})
				p, err := machine.Start(Image{Arch: X64})
				if err != nil {
					t.Fatal(err)
				}
				m := &model{p: p, sys: sys, pages: make(map[uint64]*modelPage)}
				m.startTwin(t)
				a := rapid.StateMachineActions(m)
				t.Repeat(a)
				m.checkTwin(t)
				machine.End(p)
				m.checkTwin(t)
				machine.End(m.twin)
				if err := sys.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
