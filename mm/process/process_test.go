package process

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"memfs/mm"
	"memfs/mm/store"
)

// machine is a machine and one process on it, which must leave nothing behind.
type machine struct {
	*Machine
	*Process
	sys *mm.System
	t   *testing.T
}

func newMachine(t *testing.T, frames, slots uint64, i Image) *machine {
	t.Helper()
	sys := newSystem(t, frames, slots)
	m := NewMachine(sys, OptIn, Listener{})
	p, err := m.Start(i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range append(sys.Check(), m.Check()...) {
			t.Error(err)
		}
		for _, p := range m.Processes() {
			m.End(p)
		}
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{m, p, sys, t}
}

func (m *machine) alloc(addr, size uint64, typ uint32, prot Protection) uint64 {
	m.t.Helper()
	base, err := m.Alloc(addr, size, typ, prot)
	if err != nil {
		m.t.Fatalf("Alloc(%#x, %#x, %#x, %v): %v", addr, size, typ, prot, err)
	}
	return base
}

const reserveCommit = MemReserve | MemCommit

// is fails unless err is wanted: nil, an Error, or an Exception with the same fields.
func is(t *testing.T, what string, err, wanted error) {
	t.Helper()
	var e, w *Exception
	if errors.As(wanted, &w) {
		if !errors.As(err, &e) || *e != *w {
			t.Errorf("%s: %v, want %v", what, err, wanted)
		}
		return
	}
	if !errors.Is(err, wanted) {
		t.Errorf("%s: %v, want %v", what, err, wanted)
	}
}

func TestAllocErrors(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	used := m.alloc(0x50000000, 0x1800, reserveCommit, ReadWrite)
	next := m.alloc(0x50010000, 0x1000, MemReserve, ReadWrite)
	for _, c := range []struct {
		what       string
		addr, size uint64
		typ        uint32
		prot       Protection
		want       error
	}{
		{"below the lowest address", 0x1000, 0x1000, MemReserve, ReadWrite, InvalidParameter},
		{"beyond the highest address", 0x7FFFFFFF0000, 0x1000, MemReserve, ReadWrite, InvalidParameter},
		{"across the highest address", 0x7FFFFFFE0000, 0x10001, MemReserve, ReadWrite, InvalidParameter},
		{"kernel address", 0xFFFF800000000000, 0x1000, MemReserve, ReadWrite, InvalidParameter},
		{"size that wraps", 0x50000000, ^uint64(0), MemReserve, ReadWrite, InvalidParameter},
		{"all ones from anywhere", 0, ^uint64(0), MemReserve, ReadWrite, InvalidParameter},
		{"more than there is", 0, 0x7FFFFFFE0000, MemReserve, ReadWrite, NotEnoughMemory},
		{"overlap", 0x4FFFF000, 0x2000, MemReserve, ReadWrite, InvalidAddress},
		{"rest of a slot", used + 0x8000, 0x1000, MemReserve, ReadWrite, InvalidAddress},
		{"commit in the rest of a slot", used + 0x2000, 0x1000, MemCommit, ReadWrite, InvalidAddress},
		{"commit of free memory", 0x60000000, 0x1000, MemCommit, ReadWrite, InvalidAddress},
		{"commit across two allocations", next - 0x1000, 0x2000, MemCommit, ReadWrite, InvalidAddress},
		{"commit of the shared page", sharedData, 0x1000, MemCommit, ReadWrite, InvalidAddress},
		{"reset of free memory", 0x60000000, 0x1000, MemReset, ReadWrite, InvalidAddress},
		{"reset with a bad protection", used, 0x1000, MemReset, 0, InvalidParameter},
		{"more than can be promised", 0, 1 << 30, reserveCommit, ReadWrite, CommitmentLimit},
		{"two modifiers", 0, 0x1000, MemReserve, ReadWrite | Guard | NoCache, InvalidParameter},
		{"guarded nothing", 0, 0x1000, MemReserve, NoAccess | Guard, InvalidParameter},
		{"guard alone", 0, 0x1000, MemReserve, Guard, InvalidParameter},
		{"unknown protection bit", 0, 0x1000, MemReserve, ReadWrite | 0x800, InvalidParameter},
		{"placeholder", 0, 0x1000, MemReserve | MemReservePlaceholder, NoAccess, InvalidParameter},
		{"physical with another protection", 0, 0x1000, MemReserve | MemPhysical, ReadOnly, InvalidParameter},
		{"large pages without commit", 0, LargePage, MemReserve | MemLargePages, ReadWrite, InvalidParameter},
		{"part of a large page", 0, 0x1000, reserveCommit | MemLargePages, ReadWrite, PrivilegeNotHeld},
		{"large pages", 0, LargePage, reserveCommit | MemLargePages, ReadWrite, PrivilegeNotHeld},
		{"both resets", used, 0x1000, MemReset | MemResetUndo, ReadWrite, InvalidParameter},
		{"a watch of everything", 0, 1 << 46, MemReserve | MemWriteWatch, ReadWrite, NotEnoughMemory},
		{"write combining", 0, 0x1000, MemReserve, ReadOnly | WriteCombine, nil},
		{"the whole last slot", 0x7FFFFFFE0000, 0x10000, MemReserve, ReadWrite, nil},
	} {
		before := m.sys.Snapshot().Commit
		base, err := m.Alloc(c.addr, c.size, c.typ, c.prot)
		is(t, c.what, err, c.want)
		if after := m.sys.Snapshot().Commit; err != nil && after != before {
			t.Errorf("%s: failed, and %d pages of commit are gone", c.what, after-before)
		}
		if err == nil {
			is(t, c.what+": free", m.Free(base, 0, MemRelease), nil)
		}
	}
}

func TestTopDown(t *testing.T) {
	for _, c := range []struct {
		image Image
		high  uint64
	}{
		{Image{Arch: X64}, 0x7FFFFFFEFFFF}, {Image{Arch: ARM64}, 0x7FFFFFFEFFFF},
		{Image{Arch: X86}, 0x7FFEFFFF}, {Image{Arch: X86, LargeAddressAware: true}, 0xFFFEFFFF},
	} {
		m := newMachine(t, 64, 64, c.image)
		first := m.alloc(0, 0x11000, MemReserve|MemTopDown, ReadWrite)
		second := m.alloc(0, 0x1000, MemReserve|MemTopDown, ReadWrite)
		if first+0x1FFFF > c.high || first+0x30000 < c.high || second >= first {
			t.Errorf("%+v: %#x, then %#x, want them just below %#x, descending", c.image, first, second, c.high)
		}
		low := m.alloc(0, 0x1000, MemReserve, ReadWrite)
		if low > 0x200000 {
			t.Errorf("%+v: %#x from below", c.image, low)
		}
		if m.MemoryStatus().TotalVirtual != c.high-0xFFFF {
			t.Errorf("%+v: %#x bytes of virtual memory", c.image, m.MemoryStatus().TotalVirtual)
		}
		// All that is left can be had, a slot at a time from both ends, and not one more.
		if c.image.Arch == X86 {
			is(t, "the rest", fillAll(m), NotEnoughMemory)
		}
	}
}

// fillAll reserves everything in ever smaller blocks, and returns why a slot could not be had.
func fillAll(m *machine) error {
	for size := uint64(1 << 31); ; size /= 2 {
		for {
			_, err := m.Alloc(0, size, MemReserve, NoAccess)
			if err == nil {
				continue
			}
			if size == Granularity {
				return err
			}
			break
		}
	}
}

func TestQuotas(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64, Limits: Limits{Commit: 0x4000, Virtual: 0x100000}})
	_, err := m.Alloc(0, 0x5000, reserveCommit, ReadWrite)
	is(t, "over the commit quota", err, NotEnoughMemory)
	_, err = m.Alloc(0, 0x100000, MemReserve, ReadWrite)
	is(t, "over the virtual quota", err, NotEnoughMemory)
	base := m.alloc(0, 0x8000, MemReserve, ReadWrite)
	m.alloc(base, 0x4000, MemCommit, ReadWrite)
	_, err = m.Alloc(base, 0x5000, MemCommit, ReadOnly)
	is(t, "one page more", err, NotEnoughMemory)
	if r, _ := m.Query(base); r.RegionSize != 0x4000 || r.Protect != ReadWrite {
		t.Errorf("a refused commit changed the region to %+v", r)
	}
	is(t, "decommit", m.Free(base+0x1000, 0x1000, MemDecommit), nil)
	m.alloc(base+0x4000, 0x1000, MemCommit, ReadWrite)
}

// TestPageFileFull: a commit that is refused half-way leaves nothing behind.
func TestPageFileFull(t *testing.T) {
	m := newMachine(t, 32, 96, Image{Arch: X64})
	base := m.alloc(0, 0x100000, MemReserve, ReadWrite)
	m.alloc(base+0x20000, 0x10000, MemCommit, ReadWrite)
	before := m.MemoryInfo().Private
	_, err := m.Alloc(base, 0x100000, MemCommit, ReadWrite)
	is(t, "commit of more than there is", err, CommitmentLimit)
	if after := m.MemoryInfo().Private; after != before {
		t.Errorf("%#x bytes committed, were %#x", after, before)
	}
}

func TestStackGrows(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	s, err := m.NewThread(0x10000)
	is(t, "thread", err, nil)
	if r, _ := m.Query(s.Top - 0x2000); r.Protect != ReadWrite|Guard || r.RegionSize != 0x1000 {
		t.Errorf("the guard page is %+v", r)
	}
	is(t, "below the guard", m.Write(s.Top-0x3000, []byte{1}), &Exception{StatusAccessViolation, Write, s.Top - 0x3000})
	at := s.Top - 8
	for ; at >= s.Bottom+0x2000; at -= 0x800 {
		is(t, fmt.Sprintf("push at top-%#x", s.Top-at), m.Write(at, []byte("12345678")), nil)
	}
	is(t, "the last page but one", m.Write(s.Bottom+0x1FF8, []byte{1}), &Exception{StatusStackOverflow, Write, s.Bottom + 0x1FF8})
	is(t, "after the overflow", m.Write(s.Bottom+0x1FF8, []byte{1}), nil)
	is(t, "beyond the end", m.Write(s.Bottom+0xFF8, []byte{1}), &Exception{StatusAccessViolation, Write, s.Bottom + 0xFF8})
	is(t, "fetch from the stack", m.Execute(s.Top-8), &Exception{StatusAccessViolation, Fetch, s.Top - 8})
	is(t, "end", m.EndThread(s.ID), nil)
	is(t, "end again", m.EndThread(s.ID), InvalidHandle)
	is(t, "its stack", m.Read(s.Top-8, make([]byte, 1)), &Exception{StatusAccessViolation, Read, s.Top - 8})
}

// TestStackNeedsCommit: a stack that cannot grow for want of commit has overflowed.
func TestStackNeedsCommit(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64, Limits: Limits{Commit: 0x2000}})
	s, err := m.NewThread(0)
	is(t, "thread", err, nil)
	is(t, "growth", m.Read(s.Top-0x1800, make([]byte, 1)), &Exception{StatusStackOverflow, Read, s.Top - 0x1800})
}

func TestGuardAcrossPages(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	b := m.alloc(0, 0x3000, reserveCommit|MemWriteWatch, ReadWrite)
	_, err := m.Protect(b+0x1000, 0x1000, ReadWrite|Guard)
	is(t, "arm", err, nil)
	data := bytes.Repeat([]byte{7}, 0x2800)
	is(t, "write across", m.Write(b+0x800, data), &Exception{StatusGuardPageViolation, Write, b + 0x1000})
	if pages, _ := m.GetWriteWatch(0, b, 0x3000, 10); len(pages) != 0 {
		t.Errorf("a write that did not happen marked %x", pages)
	}
	is(t, "again", m.Write(b+0x800, data), nil)
	if pages, _ := m.GetWriteWatch(0, b, 0x3000, 10); len(pages) != 3 {
		t.Errorf("a write of three pages marked %x", pages)
	}
	_, err = m.Protect(b, 0x1000, ReadWrite|Guard)
	is(t, "arm", err, nil)
	is(t, "remote read", m.ReadMemory(b, make([]byte, 4)), PartialCopy)
	is(t, "lock", m.Process.Lock(b, 0x3000), GuardPageViolation)
	is(t, "lock again", m.Process.Lock(b, 0x3000), nil)
	if m.Guards() != 2 {
		t.Errorf("%d guard pages went off, want 2", m.Guards())
	}
}

func TestRemote(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	b := m.alloc(0, 0x3000, reserveCommit, ExecuteRead)
	is(t, "write to code", m.WriteMemory(b, []byte{0xC3, 0xC3}), nil)
	if r, _ := m.Query(b); r.Protect != ExecuteRead {
		t.Errorf("the protection stayed lifted: %v", r.Protect)
	}
	_, err := m.Protect(b+0x1000, 0x1000, ExecuteReadWrite)
	is(t, "protect", err, nil)
	is(t, "write to mixed code", m.WriteMemory(b+0xFFF, []byte{1, 2}), NoAccessError)
	_, err = m.Protect(b+0x2000, 0x1000, NoAccess)
	is(t, "protect", err, nil)
	is(t, "read into nothing", m.ReadMemory(b+0x1FFF, make([]byte, 2)), PartialCopy)
	is(t, "read up to it", m.ReadMemory(b+0x1FFF, make([]byte, 1)), nil)
	is(t, "read of nothing", m.ReadMemory(0, nil), nil)
	got := make([]byte, 2)
	is(t, "read back", m.ReadMemory(b, got), nil)
	if got[0] != 0xC3 {
		t.Errorf("read %x", got)
	}
	is(t, "shared page", m.ReadMemory(sharedData+0x26C, got[:1]), nil)
	if got[0] != 10 {
		t.Errorf("NtMajorVersion %d", got[0])
	}
	is(t, "write to the shared page", m.Write(sharedData, got), &Exception{StatusAccessViolation, Write, sharedData})
}

func TestOffered(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	b := m.alloc(0, 0x4000, reserveCommit, ReadWrite)
	is(t, "write", m.Write(b, []byte("kept")), nil)
	is(t, "unaligned", m.Offer(b+1, 0x1000, 1), InvalidParameter)
	is(t, "priority 0", m.Offer(b, 0x1000, 0), InvalidParameter)
	is(t, "free memory", m.Offer(0x60000000, 0x1000, 1), InvalidParameter)
	is(t, "offer", m.Offer(b, 0x2000, 4), nil)
	is(t, "read of offered memory", m.Read(b+5, make([]byte, 1)), &Exception{StatusAccessViolation, Read, b + 5})
	if m.WorkingSetEx(b).Valid {
		t.Error("an offered page is in the working set")
	}
	is(t, "reclaim what was not offered", m.Reclaim(b+0x2000, 0x1000), InvalidParameter)
	is(t, "reclaim", m.Reclaim(b, 0x2000), nil)
	got := make([]byte, 4)
	is(t, "read", m.Read(b, got), nil)
	if string(got) != "kept" {
		t.Errorf("read %q", got)
	}
	is(t, "offer", m.Offer(b, 0x2000, 1), nil)
	m.EmptyWorkingSet()
	is(t, "reclaim what was dropped", m.Reclaim(b, 0x2000), Busy)
	is(t, "read", m.Read(b, got), nil)
	if string(got) == "kept" {
		t.Error("dropped contents came back")
	}
	is(t, "write", m.Write(b, []byte("gone")), nil)
	is(t, "discard", m.Process.Discard(b, 0x4000), nil)
	is(t, "read", m.Read(b, got), nil)
	if string(got) != "\x00\x00\x00\x00" {
		t.Errorf("read %q after discard", got)
	}
	is(t, "reset", errOf(m.Alloc(b, 0x1000, MemReset, NoAccess)), nil)
	is(t, "undo", errOf(m.Alloc(b, 0x1000, MemResetUndo, NoAccess)), nil)
}

func errOf(_ uint64, err error) error { return err }

func TestLocking(t *testing.T) {
	m := newMachine(t, 256, 64, Image{Arch: X64})
	b := m.alloc(0, 0x40000, reserveCommit, ReadWrite)
	is(t, "as much as may be", m.Process.Lock(b, 42*PageSize), nil)
	is(t, "one more", m.Process.Lock(b, 43*PageSize), WorkingSetQuota)
	is(t, "unlock what is not", m.Process.Unlock(b+42*PageSize, PageSize), NotLocked)
	is(t, "raise", m.SetWorkingSetSize(60*PageSize, 400*PageSize, 0), nil)
	is(t, "one more", m.Process.Lock(b, 43*PageSize), nil)
	m.EmptyWorkingSet()
	if n := len(m.WorkingSet()); n != 43 {
		t.Errorf("%d pages stayed, want 43", n)
	}
	is(t, "free memory", m.Process.Lock(0x60000000, 1), NoAccessError)
	is(t, "decommit", m.Free(b, 0x10000, MemDecommit), nil)
	if n := m.MemoryInfo().Locked >> pageShift; n != 27 {
		t.Errorf("%d pages locked, want 27", n)
	}
	for _, c := range []struct {
		what     string
		min, max uint64
		flags    uint32
		want     error
	}{
		{"min 0", 0, 400 << 12, 0, InvalidParameter}, {"min over max", 400 << 12, 300 << 12, 0, InvalidParameter},
		{"max too small", 1, 12 << 12, 0, InvalidParameter}, {"both min flags", 1 << 18, 2 << 18, 3, InvalidParameter},
		{"both max flags", 1 << 18, 2 << 18, 12, InvalidParameter}, {"unknown flag", 1 << 18, 2 << 18, 16, InvalidParameter},
		{"tiny", 4096, 13 << 12, 0, nil}, {"empty", ^uint64(0), ^uint64(0), 0, nil},
	} {
		is(t, c.what, m.SetWorkingSetSize(c.min, c.max, c.flags), c.want)
	}
	if low, high, _ := m.WorkingSetSize(); low != 20<<12 || high != 20<<12 {
		t.Errorf("bounds %d to %d, want 20 pages", low>>12, high>>12)
	}
	is(t, "hard maximum", m.SetWorkingSetSize(20<<12, 30<<12, HardMaxEnable), nil)
	is(t, "unlock", m.Process.Unlock(b+0x10000, 27*PageSize), nil)
	is(t, "write", m.Write(b+0x10000, make([]byte, 0x30000)), nil)
	if n := m.MemoryInfo().WorkingSet >> pageShift; n > 30 {
		t.Errorf("%d pages in a working set of at most 30", n)
	}
}

func TestPhysicalPages(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	_, err := m.AllocatePhysical(1)
	is(t, "without the privilege", err, PrivilegeNotHeld)
	p, err := m.Start(Image{Arch: X64, LockMemory: true})
	is(t, "start", err, nil)
	frames, err := p.AllocatePhysical(4)
	is(t, "allocate", err, nil)
	if len(frames) != 4 {
		t.Fatalf("frames %v", frames)
	}
	b, err := p.Alloc(0, 0x10000, MemReserve|MemPhysical, ReadWrite)
	is(t, "window", err, nil)
	is(t, "touch of the empty window", p.Write(b, []byte{1}), &Exception{StatusAccessViolation, Write, b})
	is(t, "map", p.MapPhysical(b, 2, frames[:2]), nil)
	is(t, "write", p.Write(b+0xFFE, []byte("abcd")), nil)
	is(t, "map twice", p.MapPhysical(b+0x4000, 1, frames[:1]), InvalidParameter)
	is(t, "map another's frame", p.MapPhysical(b+0x4000, 1, []uint64{1 << 40}), InvalidParameter)
	is(t, "unmap", p.MapPhysical(b, 2, nil), nil)
	is(t, "map the second elsewhere", p.MapPhysical(b+0x4000, 1, frames[1:2]), nil)
	got := make([]byte, 2)
	is(t, "read", p.Read(b+0x4000, got), nil)
	if string(got) != "cd" {
		t.Errorf("read %q, want what was written through the first mapping", got)
	}
	is(t, "protect", errOf2(p.Protect(b+0x4000, 1, ReadOnly)), InvalidAddress)
	is(t, "decommit", p.Free(b, 0x1000, MemDecommit), InvalidParameter)
	n, err := p.FreePhysical(frames)
	is(t, "free", err, nil)
	if n != 4 {
		t.Errorf("%d frames freed", n)
	}
	is(t, "touch of a freed frame", p.Read(b+0x4000, got), &Exception{StatusAccessViolation, Read, b + 0x4000})
}

func errOf2(_ Protection, err error) error { return err }

func TestPlaceholders(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	b, err := m.Alloc2(0, 0x30000, MemReserve|MemReservePlaceholder, NoAccess)
	is(t, "reserve", err, nil)
	is(t, "another protection", errOf(m.Alloc2(0, 0x1000, MemReserve|MemReservePlaceholder, ReadWrite)), InvalidParameter)
	is(t, "commit into it", errOf(m.Alloc(b, 0x1000, MemCommit, ReadWrite)), InvalidAddress)
	is(t, "split size 0", m.Free(b, 0, MemRelease|MemPreservePlaceholder), InvalidParameter)
	is(t, "split", m.Free(b+0x1000, 0x2000, MemRelease|MemPreservePlaceholder), nil)
	is(t, "replace too much", errOf(m.Alloc2(b, 0x2000, reserveCommit|MemReplacePlaceholder, ReadWrite)), InvalidAddress)
	is(t, "replace", errOf(m.Alloc2(b+0x1000, 0x2000, reserveCommit|MemReplacePlaceholder, ReadWrite)), nil)
	is(t, "write", m.Write(b+0x1000, []byte{1}), nil)
	if r, _ := m.Query(b + 0x1000); r.AllocationBase != b+0x1000 || r.AllocationProtect != ReadWrite || r.RegionSize != 0x2000 {
		t.Errorf("what replaced a placeholder is %+v", r)
	}
	is(t, "coalesce with it there", m.Free(b, 0x30000, MemRelease|MemCoalescePlaceholders), InvalidAddress)
	is(t, "back to a placeholder", m.Free(b+0x1000, 0x2000, MemRelease|MemPreservePlaceholder), nil)
	is(t, "coalesce", m.Free(b, 0x30000, MemRelease|MemCoalescePlaceholders), nil)
	is(t, "replace all", errOf(m.Alloc2(b, 0x30000, reserveCommit|MemReplacePlaceholder, ReadWrite)), nil)
	got := make([]byte, 1)
	is(t, "read", m.Read(b+0x1000, got), nil)
	if got[0] != 0 {
		t.Error("a replaced page has old contents")
	}
	ordinary := m.alloc(0, 0x4000, MemReserve, NoAccess)
	is(t, "split an ordinary reservation", m.Free(ordinary, 0x1000, MemRelease|MemPreservePlaceholder), InvalidAddress)
}

// TestManyProcesses: processes that together have several times the machine's frames, some threads in each, run at once
// while they are trimmed and their protections change. A byte that is not what its page's owner wrote is lost or leaked.
func TestManyProcesses(t *testing.T) {
	const processes, threads, pages = 8, 3, 64
	sys := newSystem(t, 128, 8192)
	sys.Start()
	m := NewMachine(sys, OptIn, Listener{})
	var wg sync.WaitGroup
	for n := range processes {
		p, err := m.Start(Image{Arch: []Arch{X64, X86, ARM64}[n%3]})
		if err != nil {
			t.Fatal(err)
		}
		base, err := p.Alloc(0, 2*threads*pages*PageSize, MemReserve, ReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(threads) {
			wg.Go(func() { runThread(t, p, base+i*2*pages*PageSize, pages, uint64(n)*threads+i) })
		}
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, err := range append(sys.Check(), m.Check()...) {
				t.Error(err)
			}
			if _, err := sys.Combine(); err != nil {
				t.Error(err)
			}
			for _, p := range m.Processes() {
				p.Maps()
				p.WorkingSet()
				_ = p.MemoryInfo()
			}
		}
	})
	wg.Wait()
	close(stop)
	others.Wait()
	for _, p := range m.Processes() {
		m.End(p)
	}
	if c := sys.Snapshot().Counters; c.PagesInput == 0 || c.PagesOutput == 0 {
		t.Errorf("nothing was paged: %+v", c)
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// runThread works on pages of its own from base on; the range behind them is taken and given back.
func runThread(t *testing.T, p *Process, base uint64, pages int, seed uint64) {
	steps := 2000
	if testing.Short() {
		steps = 500
	}
	rnd := rand.New(rand.NewPCG(seed, 3))
	fail := func(what string, err error) {
		if err != nil {
			t.Errorf("thread %d: %s: %v", seed, what, err)
		}
	}
	_, err := p.Alloc(base, uint64(pages)*PageSize, MemCommit, ReadWrite)
	fail("commit", err)
	written := make(map[uint64][]byte)
	for range steps {
		at := base + uint64(rnd.IntN(pages))*PageSize
		switch rnd.IntN(12) {
		case 0:
			_, err := p.Protect(at, PageSize, NoAccess)
			fail("protect", err)
			var e *Exception
			if err := p.Read(at, make([]byte, 1)); !errors.As(err, &e) {
				t.Errorf("thread %d: a page without access was read: %v", seed, err)
			}
			_, err = p.Protect(at, PageSize, ReadWrite)
			fail("protect", err)
		case 1:
			fail("decommit", p.Free(at, PageSize, MemDecommit))
			_, err := p.Alloc(at, PageSize, MemCommit, ReadWrite)
			fail("commit", err)
			delete(written, at)
		case 2:
			p.EmptyWorkingSet()
		case 3:
			other, err := p.Alloc(0, 0x8000, reserveCommit, ReadWrite)
			fail("alloc", err)
			fail("write", p.Write(other, make([]byte, 0x8000)))
			fail("free", p.Free(other, 0, MemRelease))
		case 4, 5, 6, 7:
			data := make([]byte, 32)
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			fail("write", p.Write(at+100, data))
			written[at] = data
		default:
			got, want := make([]byte, 32), written[at]
			if want == nil {
				want = make([]byte, 32)
			}
			fail("read", p.Read(at+100, got))
			if !bytes.Equal(got, want) {
				t.Errorf("thread %d: %#x holds %x, want %x", seed, at, got, want)
				return
			}
		}
	}
}

// TestEndWhileBusy: a process is ended while threads use it; they get errors, and nothing is left.
func TestEndWhileBusy(t *testing.T) {
	sys := newSystem(t, 64, 512)
	sys.Start()
	m := NewMachine(sys, OptIn, Listener{})
	for range 20 {
		p, err := m.Start(Image{Arch: X64})
		if err != nil {
			t.Fatal(err)
		}
		base, _ := p.Alloc(0, 0x80000, reserveCommit, ReadWrite)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for {
					err := p.Write(base+uint64(i)*0x10000, make([]byte, 0x10000))
					if err != nil {
						return
					}
					if b, err := p.Alloc(0, 0x2000, reserveCommit, ReadWrite); err == nil {
						_ = p.Write(b, []byte{1})
					}
				}
			})
		}
		m.End(p)
		wg.Wait()
	}
	for _, err := range sys.Check() {
		t.Error(err)
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// failingStore fails reads and writes while told so.
type failingStore struct {
	mm.Store
	read, write atomic.Bool
}

func (s *failingStore) ReadSlots(slot uint64, bufs [][]byte) error {
	if s.read.Load() {
		return errors.New("broken")
	}
	return s.Store.ReadSlots(slot, bufs)
}

func (s *failingStore) WriteSlots(slot uint64, bufs [][]byte) error {
	if s.write.Load() {
		return errors.New("broken")
	}
	return s.Store.WriteSlots(slot, bufs)
}

// TestInPageError: a page whose copy cannot be read back raises an in-page error; it is there again when the store is.
func TestInPageError(t *testing.T) {
	disk := &failingStore{Store: store.NewMem()}
	b := mm.Budget{Memory: 64 << 20, Frames: 64, HostBytes: 64 * mm.PageSize, PageFile: 64, CommitLimit: 128}
	sys, err := mm.NewFromBudget(b, mm.Config{PageFiles: []mm.PageFileConfig{{Name: "test", Store: disk, Max: 64}}})
	is(t, "system", err, nil)
	m := NewMachine(sys, OptIn, Listener{})
	p, err := m.Start(Image{Arch: X64})
	is(t, "start", err, nil)
	base, err := p.Alloc(0, 0x10000, reserveCommit, ExecuteReadWrite)
	is(t, "alloc", err, nil)
	is(t, "write", p.Write(base, []byte("safe")), nil)
	is(t, "write", p.Write(base+0x2000, []byte("safe")), nil)
	p.EmptyWorkingSet()
	disk.write.Store(true)
	if _, err := sys.FlushModified(); err == nil {
		t.Error("a page-out to a broken store succeeded")
	}
	disk.write.Store(false)
	if _, err := sys.FlushModified(); err != nil {
		t.Error(err)
	}
	sys.EmptyStandby()
	disk.read.Store(true)
	got := make([]byte, 4)
	is(t, "read", p.Read(base, got), &Exception{StatusInPageError, Read, base})
	is(t, "write", p.Write(base+1, []byte{1}), &Exception{StatusInPageError, Write, base + 1})
	is(t, "fetch", p.Execute(base+2), &Exception{StatusInPageError, Fetch, base + 2})
	is(t, "read across", p.Read(base+0x1800, make([]byte, 0x1000)), &Exception{StatusInPageError, Read, base + 0x2000})
	is(t, "lock", p.Lock(base, 1), SwapError)
	is(t, "remote read", p.ReadMemory(base, got), SwapError)
	is(t, "remote write", p.WriteMemory(base, got), SwapError)
	disk.read.Store(false)
	is(t, "read", p.Read(base, got), nil)
	if string(got) != "safe" {
		t.Errorf("read %q", got)
	}
	for _, err := range append(sys.Check(), m.Check()...) {
		t.Error(err)
	}
	m.End(p)
	is(t, "close", sys.Close(), nil)
}

// TestHalfMade: what cannot be made whole leaves nothing behind.
func TestHalfMade(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X64, Limits: Limits{Commit: 0x1000}})
	_, err := m.NewThread(0)
	is(t, "a stack whose second page is over the quota", err, NotEnoughMemory)
	if n := len(m.Maps()); n != 1 || len(m.Threads()) != 0 || m.MemoryInfo().Private != 0 {
		t.Errorf("%d regions, %d threads, %d bytes committed", n, len(m.Threads()), m.MemoryInfo().Private)
	}
	before := m.sys.Snapshot().RecordBytes
	base := m.alloc(0, 0x100000, MemReserve|MemWriteWatch, ReadWrite)
	for at := base; at < base+0x1000*64; at += 0x2000 {
		_, err := m.Alloc(at, 0x1000, MemCommit, ReadOnly)
		if at == base {
			is(t, "commit", err, nil)
		} else {
			is(t, "over the quota", err, NotEnoughMemory)
		}
	}
	is(t, "free", m.Free(base, 0, MemRelease), nil)
	if after := m.sys.Snapshot().RecordBytes; after != before {
		t.Errorf("%d bytes of records, were %d", after, before)
	}
	if m.Machine.Process(m.ID()) != m.Process || m.Machine.Process(1) != nil {
		t.Error("a process is not found by its number, or one that there is not")
	}
}

// TestPhysicalWindowReleased: what was mapped in a window that is gone can be mapped in another.
func TestPhysicalWindowReleased(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X86, LockMemory: true})
	frames, err := m.AllocatePhysical(1)
	is(t, "allocate", err, nil)
	for range 2 {
		b := m.alloc(0, 0x10000, MemReserve|MemPhysical, ReadWrite)
		is(t, "map", m.MapPhysical(b, 1, frames), nil)
		is(t, "write", m.Write(b, []byte{1}), nil)
		if at := m.Translate(b); !at.Valid || uint64(at.Frame) != frames[0] {
			t.Errorf("%+v, want frame %d", at, frames[0])
		}
		is(t, "free", m.Free(b, 0, MemRelease), nil)
		is(t, "touch", m.Write(b, []byte{1}), &Exception{StatusAccessViolation, Write, b})
	}
}

func TestNames(t *testing.T) {
	for p := AlwaysOff; p <= OptOut; p++ {
		if got, ok := ParsePolicy(p.String()); !ok || got != p {
			t.Errorf("%v is read as %v", p, got)
		}
	}
	if _, ok := ParsePolicy("Sometimes"); ok {
		t.Error("a policy that there is not was read")
	}
	for text, p := range map[string]Protection{
		"0": 0, "PAGE_READWRITE|PAGE_GUARD": ReadWrite | Guard, "PAGE_EXECUTE_WRITECOPY": ExecuteWriteCopy,
		"PAGE_READONLY|0x800": ReadOnly | 0x800,
	} {
		if p.String() != text {
			t.Errorf("%#x is %v, want %s", uint32(p), p, text)
		}
	}
}
