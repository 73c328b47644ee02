package process

import "testing"

// TestLargePages: large pages are aligned, have their frames from the start and keep them whatever else wants frames, and are
// refused when there are none.
func TestLargePages(t *testing.T) {
	m := newMachine(t, 4096, 4096, Image{Arch: X64, LockMemory: true})
	const both = MemReserve | MemCommit | MemLargePages
	none, err := m.Machine.Start(Image{Arch: X64})
	is(t, "start", err, nil)
	_, err = none.Alloc(0, LargePage, both, ReadWrite)
	is(t, "without the privilege", err, PrivilegeNotHeld)
	for _, c := range []struct {
		addr, size uint64
		typ        uint32
		want       error
	}{
		{0, LargePage + PageSize, both, InvalidParameter},
		{LargePage + Granularity, LargePage, both, InvalidParameter},
		{0, LargePage, MemReserve | MemLargePages, InvalidParameter},
		{0, LargePage, MemCommit | MemLargePages, InvalidParameter},
		{0, LargePage, both | MemWriteWatch, InvalidParameter},
		{0, 5 * LargePage, both, NoSystemResources}, // more than half of the frames
	} {
		_, err := m.Alloc(c.addr, c.size, c.typ, ReadWrite)
		is(t, "refused", err, c.want)
	}
	before := m.sys.Snapshot()
	ws := m.MemoryInfo()
	base, err := m.Alloc(0, 2*LargePage, both, ReadWrite)
	is(t, "two large pages", err, nil)
	if base%LargePage != 0 {
		t.Errorf("large pages at 0x%x", base)
	}
	top, err := m.Alloc(0, LargePage, both|MemTopDown, ReadWrite)
	is(t, "at the top", err, nil)
	if top%LargePage != 0 || top < 1<<46 {
		t.Errorf("the highest large page is at 0x%x", top)
	}
	is(t, "free", m.Free(top, 0, MemRelease), nil)
	f := m.WorkingSetEx(base + LargePage + 0x5000)
	if want := (PageFacts{Valid: true, Protection: ReadWrite, Locked: true, Large: true}); f != want {
		t.Errorf("a large page is %+v", f)
	}
	now := m.sys.Snapshot()
	if n := now.Commit - before.Commit; n < 1024 || n > 1024+64 {
		t.Errorf("%d pages are committed for 1024", n)
	}
	m.EmptyWorkingSet()
	is(t, "VirtualUnlock", m.Unlock(base, LargePage), nil)
	is(t, "MEM_RESET", func() error { _, err := m.Alloc(base, LargePage, MemReset, ReadWrite); return err }(), nil)
	is(t, "offer", m.Offer(base, LargePage, 1), InvalidParameter)
	is(t, "discard", m.Discard(base, LargePage), InvalidParameter)
	is(t, "decommit", m.Free(base, LargePage, MemDecommit), InvalidParameter)
	_, err = m.Protect(base, PageSize, ReadOnly)
	is(t, "a part of a large page", err, InvalidParameter)
	_, err = m.Protect(base, LargePage, ReadOnly)
	is(t, "a large page", err, nil)
	// Others use all the frames that there are.
	other, err := m.Alloc(0, 4096*PageSize, MemReserve|MemCommit, ReadWrite)
	is(t, "others", err, nil)
	for at := uint64(0); at < 4096*PageSize; at += PageSize {
		if err := m.Write(other+at, []byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	for at := uint64(0); at < 2*LargePage; at += PageSize {
		if f := m.WorkingSetEx(base + at); !f.Valid || !f.Large {
			t.Fatalf("page 0x%x of a large page is %+v", base+at, f)
		}
	}
	is(t, "VirtualLock beside them", m.Lock(other, 16*PageSize), nil)
	is(t, "more than the quota", m.Lock(other, 100*PageSize), WorkingSetQuota)
	is(t, "free the others", m.Free(other, 0, MemRelease), nil)
	is(t, "free", m.Free(base, 0, MemRelease), nil)
	if after := m.MemoryInfo(); after.Locked != ws.Locked || after.Private != ws.Private {
		t.Errorf("left are %d bytes locked, %d private, were %d, %d", after.Locked, after.Private, ws.Locked, ws.Private)
	}
}

// TestLargeSections: a section of large pages is in memory as long as it is there, and is mapped as large pages by who says so.
func TestLargeSections(t *testing.T) {
	m := newMachine(t, 4096, 4096, Image{Arch: X64, LockMemory: true})
	const flags = uint32(ReadWrite) | SecCommit | SecLargePages
	_, _, err := m.CreateSection(NoHandle, flags, LargePage+PageSize, "", false)
	is(t, "one and a half", err, InvalidParameter)
	_, _, err = m.CreateSection(NoHandle, flags, 5*LargePage, "", false)
	is(t, "more than half of the frames", err, NoSystemResources)
	h, _, err := m.CreateSection(NoHandle, flags, 2*LargePage, "", false)
	is(t, "two large pages", err, nil)
	v, err := m.MapView(h, ViewRequest{Protection: ReadWrite, Type: MemLargePages, Offset: LargePage})
	is(t, "map", err, nil)
	small, err := m.MapView(h, ViewRequest{Protection: ReadWrite})
	is(t, "map as small pages", err, nil)
	if v%LargePage != 0 {
		t.Errorf("a view of large pages is at 0x%x", v)
	}
	is(t, "write", m.Write(v, []byte{7}), nil)
	b := []byte{0}
	is(t, "read", m.Read(small+LargePage, b), nil)
	if b[0] != 7 {
		t.Errorf("the other view reads %d", b[0])
	}
	if f := m.WorkingSetEx(v + 0x1000); !f.Valid || !f.Shared || !f.Large || !f.Locked {
		t.Errorf("a page of the view is %+v", f)
	}
	if f := m.WorkingSetEx(small + LargePage); !f.Valid || f.Large {
		t.Errorf("a small page of the view is %+v", f)
	}
	for _, r := range []ViewRequest{
		{Protection: ReadWrite, Type: MemLargePages, Size: PageSize},
		{Protection: WriteCopy, Type: MemLargePages},
	} {
		_, err := m.MapView(h, r)
		is(t, "refused", err, InvalidParameter)
	}
	_, err = m.MapView(h, ViewRequest{Protection: ReadWrite, Type: MemLargePages, Base: LargePage*1000 + Granularity})
	is(t, "a base that is none of a large page", err, MappedAlignment)
	plain, _, err := m.CreateSection(NoHandle, uint32(ReadWrite), LargePage, "", false)
	is(t, "another section", err, nil)
	_, err = m.MapView(plain, ViewRequest{Protection: ReadWrite, Type: MemLargePages})
	is(t, "large pages of a section that has none", err, InvalidParameter)
	is(t, "unmap", m.UnmapView(v, 0), nil)
	is(t, "unmap", m.UnmapView(small, 0), nil)
	is(t, "close", m.Close(h), nil)
	is(t, "close", m.Close(plain), nil)
	if pages, _ := m.sys.Resident(); pages != 0 || m.MemoryInfo().Locked != 0 {
		t.Errorf("%d pages must stay in memory, %d bytes are locked, when all are gone", pages, m.MemoryInfo().Locked)
	}
}
