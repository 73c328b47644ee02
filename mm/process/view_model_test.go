package process

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"memfs/mm"

	"pgregory.net/rapid"
)

// memoryFiles is files of a machine without a mount, each of one segment.
type memoryFiles struct {
	noFiles
	files map[string]*looseFile
}

type memoryFile struct {
	*looseFile
	path string
}

func (f *memoryFile) Path() string { return f.path }
func (f *memoryFile) SetSize(n int64) error {
	if n < f.size {
		f.seg.Punch(uint64(n+PageSize-1)>>pageShift, 1<<40)
	}
	f.size = n
	return nil
}
func (f *memoryFile) Extend(n int64) error { return f.SetSize(max(n, f.size)) }
func (f *memoryFile) Close()               {}

func (m *memoryFiles) Open(_ *Process, path string, _ uint32, _ Disposition) (File, bool, error) {
	f := m.files[path]
	if f == nil {
		f = &looseFile{seg: m.sys.NewSegment(nil)}
		m.files[path] = f
		return &memoryFile{f, path}, false, nil
	}
	return &memoryFile{f, path}, true, nil
}

func (m *memoryFiles) close() {
	for _, f := range m.files {
		f.seg.Delete()
	}
}

// sharedPages is what a section ought to hold.
type sharedPages struct {
	name       string
	protection Protection
	file       bool
	reserves   bool
	bytes      []byte
	committed  []bool
}

// viewPage is what a page of a process ought to be: what it shows, and its own copy if it has one.
type viewPage struct {
	section    *sharedPages
	index      int // in the section
	base       uint64
	allocation Protection
	protection Protection
	own        []byte // nil = none
}

// person is a process of the model.
type person struct {
	p       *Process
	handles map[*sharedPages]Handle
	pages   map[uint64]*viewPage
}

// viewModel is sections and the processes that map them, said a page and a byte at a time.
type viewModel struct {
	sys      *mm.System
	machine  *Machine
	files    *memoryFiles
	sections []*sharedPages
	people   []*person
}

const viewWindow = 3 * slotPages // pages that views of a process lie in

func newViewModel(t *rapid.T, frames uint64) *viewModel {
	sys := newSystem(t, frames, 2048)
	m := &viewModel{sys: sys, machine: NewMachine(sys, OptIn, Listener{})}
	m.files = &memoryFiles{noFiles{sys}, make(map[string]*looseFile)}
	m.machine.SetFiles(m.files)
	for i, s := range []*sharedPages{
		{protection: ExecuteReadWrite}, {protection: ReadWrite, reserves: true}, {protection: ExecuteReadWrite, file: true},
		{protection: WriteCopy, file: true},
	} {
		s.name = fmt.Sprint("section", i)
		s.bytes = make([]byte, []int{18, 20, 17, 5}[i]*PageSize)
		s.committed = make([]bool, len(s.bytes)/PageSize)
		m.sections = append(m.sections, s)
	}
	for range 3 {
		m.start(t)
	}
	return m
}

func (m *viewModel) start(t *rapid.T) {
	p, err := m.machine.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	m.people = append(m.people, &person{p: p, handles: make(map[*sharedPages]Handle), pages: make(map[uint64]*viewPage)})
}

func (m *viewModel) end() error {
	for _, o := range m.people {
		m.machine.End(o.p)
	}
	m.files.close()
	return m.sys.Close()
}

func (m *viewModel) someone(t *rapid.T) *person {
	return rapid.SampledFrom(m.people).Draw(t, "process")
}

// handle is a process's handle of a section, opened if need be. Without one left anywhere, sections of the page file lose
// what they hold, as they should; so each process keeps what it has opened.
func (m *viewModel) handle(t *rapid.T, o *person, s *sharedPages) Handle {
	if h, ok := o.handles[s]; ok {
		return h
	}
	flags := uint32(s.protection)
	if s.reserves {
		flags |= SecReserve
	}
	file := NoHandle
	if s.file {
		var existed bool
		var err error
		if file, existed, err = o.p.OpenFile(FileRequest{Path: "/" + s.name, Access: GenericAll, Share: ShareAll, Disposition: OpenAlways}); err != nil {
			t.Fatal(err)
		}
		if !existed {
			m.files.files["/"+s.name].size = int64(len(s.bytes))
		}
	}
	h, existed, err := o.p.CreateSection(file, flags, uint64(len(s.bytes)), s.name, false)
	if err != nil {
		t.Fatal(err)
	}
	if s.file {
		want(t, "close the file", o.p.Close(file), nil)
	} else if !existed { // it is new
		clear(s.bytes)
		for i := range s.committed {
			s.committed[i] = !s.reserves
		}
	}
	if s.file {
		for i := range s.committed {
			s.committed[i] = true
		}
	}
	o.handles[s] = h
	return h
}

func (m *viewModel) protection(t *rapid.T) Protection {
	return rapid.SampledFrom([]Protection{NoAccess, ReadOnly, ReadWrite, ReadWrite, WriteCopy, WriteCopy, ExecuteRead,
		ExecuteReadWrite, ExecuteWriteCopy}).Draw(t, "protection")
}

func (m *viewModel) Map(t *rapid.T) {
	o, s := m.someone(t), rapid.SampledFrom(m.sections).Draw(t, "section")
	prot := m.protection(t)
	offset := rapid.SampledFrom([]int{0, 0, slotPages}).Draw(t, "offset")
	size := rapid.IntRange(1, 20).Draw(t, "pages")
	base := uint64(windowBase + slotPages*rapid.IntRange(0, 2).Draw(t, "slot"))
	h := m.handle(t, o, s)
	var wanted error
	total := len(s.committed)
	switch {
	case granted(s.protection)&needs(prot) != needs(prot):
		wanted = AccessDenied
	case offset+size > total:
		wanted = AccessDenied
	default:
		for page := base; page <= (base+uint64(size)-1)|(slotPages-1); page++ {
			for at := range o.pages {
				if at&^(slotPages-1) == page&^(slotPages-1) {
					wanted = InvalidAddress
				}
			}
		}
	}
	got, err := o.p.MapView(h, ViewRequest{
		Offset: uint64(offset * PageSize), Base: base << pageShift, Size: uint64(size * PageSize), Protection: prot,
	})
	want(t, "map", err, wanted)
	if err != nil {
		return
	}
	if got != base<<pageShift {
		t.Fatalf("mapped at %#x", got)
	}
	for i := range size {
		o.pages[base+uint64(i)] = &viewPage{
			section: s, index: offset + i, base: base, allocation: prot, protection: prot,
		}
	}
}

func (m *viewModel) Unmap(t *rapid.T) {
	o := m.someone(t)
	page := windowBase + uint64(rapid.IntRange(0, viewWindow).Draw(t, "page"))
	v := o.pages[page]
	var wanted error
	if v == nil {
		wanted = InvalidAddress
	}
	want(t, "unmap", o.p.UnmapView(page<<pageShift+5, 0), wanted)
	if v == nil {
		return
	}
	for at, w := range o.pages {
		if w.base == v.base {
			delete(o.pages, at)
		}
	}
}

// fault is the exception that an access leads to, nil if none.
func (o *person) fault(k Kind, addr, n uint64) *Exception {
	for page := addr >> pageShift; page <= (addr+n-1)>>pageShift; page++ {
		v := o.pages[page]
		if v == nil || !v.section.committed[v.index] || !v.protection.allows(k, true) {
			return &Exception{StatusAccessViolation, k, max(addr, page<<pageShift)}
		}
	}
	return nil
}

// shown is the bytes of a page.
func (v *viewPage) shown() []byte {
	if v.own != nil {
		return v.own
	}
	return v.section.bytes[v.index*PageSize:][:PageSize]
}

func (m *viewModel) span(t *rapid.T) (addr, n uint64) {
	addr = windowBase<<pageShift + uint64(rapid.IntRange(0, viewWindow*PageSize).Draw(t, "address"))
	return addr, uint64(rapid.IntRange(1, 5*PageSize).Draw(t, "bytes"))
}

func wantException(t *rapid.T, err error, wanted *Exception) {
	t.Helper()
	var e *Exception
	switch {
	case wanted == nil && err != nil:
		t.Fatalf("%v", err)
	case wanted != nil && (!errors.As(err, &e) || *e != *wanted):
		t.Fatalf("%v, want %v", err, wanted)
	}
}

func (m *viewModel) Read(t *rapid.T) {
	o := m.someone(t)
	addr, n := m.span(t)
	b := make([]byte, n)
	wanted := o.fault(Read, addr, n)
	wantException(t, o.p.Read(addr, b), wanted)
	if wanted == nil {
		o.compare(t, addr, b)
	}
}

func (o *person) compare(t *rapid.T, addr uint64, got []byte) {
	t.Helper()
	for i := 0; i < len(got); {
		at := addr + uint64(i)
		page := o.pages[at>>pageShift].shown()[at%PageSize:]
		n := min(len(got)-i, len(page))
		if !bytes.Equal(got[i:i+n], page[:n]) {
			t.Fatalf("process %d page %#x: not the bytes that were stored", o.p.id, at>>pageShift)
		}
		i += n
	}
}

func (m *viewModel) Write(t *rapid.T) {
	o := m.someone(t)
	addr, n := m.span(t)
	b := bytes.Repeat([]byte{byte(rapid.IntRange(1, 4).Draw(t, "byte"))}, int(n))
	wanted := o.fault(Write, addr, n)
	wantException(t, o.p.Write(addr, b), wanted)
	if wanted == nil {
		o.store(addr, b)
	}
}

// store is what a store that is allowed does.
func (o *person) store(addr uint64, b []byte) {
	for i := 0; i < len(b); {
		at := addr + uint64(i)
		v := o.pages[at>>pageShift]
		if v.own == nil && !v.protection.shares() {
			v.own = bytes.Clone(v.shown())
			v.protection = v.protection.own()
		}
		i += copy(v.shown()[at%PageSize:], b[i:])
	}
}

func (m *viewModel) RemoteWrite(t *rapid.T) {
	o := m.someone(t)
	addr, n := m.span(t)
	b := bytes.Repeat([]byte{byte(rapid.IntRange(1, 4).Draw(t, "byte"))}, int(n))
	if o.fault(Write, addr, n) != nil {
		if err := o.p.WriteMemory(addr, b); !errors.Is(err, NoAccessError) {
			t.Fatalf("written: %v", err)
		}
		return
	}
	want(t, "WriteProcessMemory", o.p.WriteMemory(addr, b), nil)
	o.store(addr, b)
}

// one says whether pages are of one view, and all committed.
func (o *person) one(first, last uint64) (one, committed bool) {
	one, committed = true, true
	for page := first; page <= last; page++ {
		v := o.pages[page]
		if v == nil || v.base != o.pages[first].base {
			return false, false
		}
		committed = committed && v.section.committed[v.index]
	}
	return one, committed
}

func (m *viewModel) pagesOf(t *rapid.T) (first, last uint64) {
	first = windowBase + uint64(rapid.IntRange(0, viewWindow).Draw(t, "first"))
	return first, first + uint64(rapid.IntRange(0, 6).Draw(t, "more"))
}

func (o *person) reprotect(first, last uint64, prot Protection) {
	for page := first; page <= last; page++ {
		v := o.pages[page]
		if v.protection = prot; v.own != nil {
			v.protection = prot.own()
		}
	}
}

func (m *viewModel) Protect(t *rapid.T) {
	o := m.someone(t)
	first, last := m.pagesOf(t)
	prot := m.protection(t)
	var wanted error
	one, committed := o.one(first, last)
	switch {
	case o.pages[first] == nil && !prot.valid():
		wanted = InvalidParameter
	case !one:
		wanted = InvalidAddress
	case prot.access()&^o.pages[first].allocation.access() != 0:
		wanted = InvalidParameter
	case !committed:
		wanted = InvalidAddress
	}
	old, err := o.p.Protect(first<<pageShift, (last-first+1)<<pageShift, prot)
	want(t, "protect", err, wanted)
	if err != nil {
		return
	}
	if old != o.pages[first].protection {
		t.Fatalf("old protection %v, want %v", old, o.pages[first].protection)
	}
	o.reprotect(first, last, prot)
}

func (m *viewModel) Commit(t *rapid.T) {
	o := m.someone(t)
	first, last := m.pagesOf(t)
	prot := m.protection(t)
	var wanted error
	one, _ := o.one(first, last)
	switch {
	case o.pages[first] == nil && !prot.valid():
		wanted = InvalidParameter
	case !one:
		wanted = InvalidAddress
	case o.pages[first].section.file:
		wanted = AccessDenied
	case prot.access()&^o.pages[first].allocation.access() != 0:
		wanted = InvalidParameter
	}
	_, err := o.p.Alloc(first<<pageShift, (last-first+1)<<pageShift, MemCommit, prot)
	want(t, "commit", err, wanted)
	if err != nil {
		return
	}
	for page := first; page <= last; page++ {
		v := o.pages[page]
		v.section.committed[v.index] = true
	}
	o.reprotect(first, last, prot)
}

// Combine has pages of the same bytes share frames, copies that processes have made and pages of sections that none has in its
// working set.
func (m *viewModel) Combine(t *rapid.T) {
	if _, err := m.sys.Combine(); err != nil {
		t.Fatal(err)
	}
}

// Punch is what a real program does to a file that processes map: pages become holes.
func (m *viewModel) Punch(t *rapid.T) {
	s := m.sections[2+rapid.IntRange(0, 1).Draw(t, "file")]
	f := m.files.files["/"+s.name]
	if f == nil {
		return
	}
	first := rapid.IntRange(0, len(s.committed)-1).Draw(t, "first")
	last := min(len(s.committed)-1, first+rapid.IntRange(0, 4).Draw(t, "more"))
	f.seg.Punch(uint64(first), uint64(last))
	clear(s.bytes[first*PageSize : (last+1)*PageSize])
}

func (m *viewModel) Lock(t *rapid.T) {
	o := m.someone(t)
	page := windowBase + uint64(rapid.IntRange(0, viewWindow).Draw(t, "page"))
	if o.fault(Read, page<<pageShift, 1) != nil {
		return
	}
	want(t, "lock", o.p.Lock(page<<pageShift, 1), nil)
	if f := o.p.WorkingSetEx(page << pageShift); !f.Valid || !f.Locked || f.Shared != (o.pages[page].own == nil) {
		t.Fatalf("a locked page is %+v", f)
	}
	want(t, "unlock", o.p.Unlock(page<<pageShift, 1), nil)
}

func (m *viewModel) Trim(t *rapid.T) {
	switch rapid.IntRange(0, 3).Draw(t, "what") {
	case 0:
		m.someone(t).p.EmptyWorkingSet()
	case 1:
		for _, o := range m.people {
			o.p.EmptyWorkingSet()
		}
		_, err := m.sys.FlushModified()
		want(t, "flush", err, nil)
	case 2:
		m.sys.EmptyStandby()
	case 3:
		o := m.someone(t)
		want(t, "prefetch", o.p.Prefetch([]Range{{windowBase << pageShift, viewWindow << pageShift}}), nil)
	}
}

// Exit ends a process; another one starts.
func (m *viewModel) Exit(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	i := rapid.IntRange(0, len(m.people)-1).Draw(t, "who")
	m.machine.End(m.people[i].p)
	m.people = append(m.people[:i], m.people[i+1:]...)
	m.start(t)
}

// Check compares every page with what VirtualQuery and QueryWorkingSetEx say of it, and has all check themselves.
func (m *viewModel) Check(t *rapid.T) {
	for _, err := range append(m.sys.Check(), m.machine.Check()...) {
		t.Fatal(err)
	}
	for _, o := range m.people {
		var promised uint64
		for page, v := range o.pages {
			r, err := o.p.Query(page << pageShift)
			if err != nil {
				t.Fatal(err)
			}
			w := Region{
				BaseAddress: page << pageShift, AllocationBase: v.base << pageShift, AllocationProtect: v.allocation,
				RegionSize: r.RegionSize, State: StateReserve, Type: TypeMapped,
			}
			if v.section.committed[v.index] {
				w.State, w.Protect = StateCommit, v.protection
			}
			if r != w {
				t.Fatalf("process %d page %#x: %+v, want %+v", o.p.id, page, r, w)
			}
			for n := uint64(1); n < r.RegionSize>>pageShift; n++ {
				if x := o.pages[page+n]; x == nil || x.base != v.base || x.section.committed[x.index] != v.section.committed[v.index] ||
					w.State == StateCommit && x.protection != v.protection {
					t.Fatalf("process %d page %#x: region of %#x bytes reaches over pages that differ", o.p.id, page, r.RegionSize)
				}
			}
			if v.own != nil || v.protection.copies() {
				promised++
			}
			f := o.p.WorkingSetEx(page << pageShift)
			shared := v.own == nil && v.section.committed[v.index]
			if v.own != nil && f.Valid {
				shared = o.p.space.Page(page).Sharers > 0 // a copy that has been combined
			}
			if f.Shared != shared || f.Valid && f.Shared == (f.ShareCount == 0) {
				t.Fatalf("process %d page %#x: %+v, want it shared: %v", o.p.id, page, f, v.own == nil)
			}
		}
		if got := o.p.MemoryInfo().Private >> pageShift; got != promised {
			t.Fatalf("process %d: %d pages of commit, want %d", o.p.id, got, promised)
		}
	}
}

// TestViewModel does random things to sections that several processes map, on machines whose frames are a fraction of the
// pages.
func TestViewModel(t *testing.T) {
	for _, frames := range []uint64{24, 400} {
		t.Run(fmt.Sprint(frames), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := newViewModel(t, frames)
				t.Repeat(rapid.StateMachineActions(m))
				if err := m.end(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
