package process

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"memfs/mapping/image"
	"memfs/mapping/image/pefile"
	"memfs/mm"
)

// imageFiles are files that are there from the start.
type imageFiles struct {
	noFiles
	byPath map[string]*looseFile
}

// opened is an opening: what it closes is there for the others.
type opened struct {
	*looseFile
	path string
}

func (o opened) Path() string { return o.path }
func (o opened) Close()       {}

func (f *imageFiles) Open(_ *Process, path string, _ uint32, _ Disposition) (File, bool, error) {
	if l := f.byPath[path]; l != nil {
		return opened{l, path}, true, nil
	}
	return nil, false, FileNotFound
}

// withFiles gives a machine files, which are gone when the test ends.
func (m *machine) withFiles(files map[string][]byte) {
	m.t.Helper()
	f := &imageFiles{noFiles{m.sys}, make(map[string]*looseFile)}
	for path, b := range files {
		l := &looseFile{seg: m.sys.NewSegment(nil), size: int64(len(b))}
		if err := l.seg.Store(0, b); err != nil {
			m.t.Fatal(err)
		}
		f.byPath[path] = l
	}
	m.SetFiles(f)
	m.t.Cleanup(func() {
		for _, err := range append(m.sys.Check(), m.Check()...) {
			m.t.Error(err)
		}
		for _, p := range m.Processes() {
			m.End(p)
		}
		m.images.Lock()
		if n := len(m.areas); n > 0 {
			m.t.Errorf("%d images are left when nobody maps one", n)
		}
		m.images.Unlock()
		for _, l := range f.byPath {
			l.seg.Delete()
		}
	})
}

// section makes an image section of a file.
func (p *Process) section(t *testing.T, path string) Handle {
	t.Helper()
	f, _, err := p.OpenFile(FileRequest{Path: path, Access: GenericRead | GenericExecute, Share: ShareAll, Disposition: OpenExisting})
	is(t, "open "+path, err, nil)
	h, _, err := p.CreateSection(f, uint32(ReadOnly)|SecImage, 0, "", false)
	is(t, "CreateFileMapping "+path, err, nil)
	is(t, "close", p.Close(f), nil)
	return h
}

func (p *Process) mapImage(t *testing.T, h Handle, base uint64) uint64 {
	t.Helper()
	v, err := p.MapView(h, ViewRequest{Base: base, Protection: ReadOnly})
	is(t, "MapViewOfFile", err, nil)
	return v
}

// expect compares what a process reads of an image with what the file is there.
func expect(t *testing.T, p *Process, file []byte, base uint64) {
	t.Helper()
	im, err := image.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, PageSize), make([]byte, PageSize)
	for at := uint64(0); at < im.Size; at += PageSize {
		if r, err := p.Query(base + at); err != nil || r.AllocationBase != base || r.Type != TypeImage ||
			r.AllocationProtect != ExecuteWriteCopy {
			t.Fatalf("0x%x: %+v, %v", base+at, r, err)
		} else if r.Protect == NoAccess {
			continue
		}
		is(t, fmt.Sprintf("read 0x%x", base+at), p.Read(base+at, got), nil)
		if err := im.ReadAt(bytes.NewReader(file), want, at, base-im.Base); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("page 0x%x of the image at 0x%x is not what the file makes of it", at, base)
		}
	}
}

// library is a DLL with code at a page of the file, data, zeros, addresses, and data that all write together.
func library(dllChars uint16) []byte {
	code := make([]byte, 0x6000)
	for i := range code {
		code[i] = byte(i>>12*16 + i%13)
	}
	relocs := append(pefile.RelocBlock(0x2000, 10<<12|0x10, 10<<12|0xffc), pefile.RelocBlock(0x7000, 10<<12|8)...)
	return pefile.PE{
		FileAlign: 0x1000, DLLChars: dllChars, RelocRVA: 0xC000, RelocSize: uint32(len(relocs)),
		Sections: []pefile.Section{
			{Name: ".text", Chars: pefile.Read | pefile.Execute, Data: code},
			{Name: ".data", Chars: pefile.Read | pefile.Write, Data: bytes.Repeat([]byte{7}, 0x1000), Virtual: 0x3000},
			{Name: ".shared", Chars: pefile.Read | pefile.Write | pefile.Shared, Data: []byte("together"), Virtual: 0x2000},
			{Name: ".reloc", Chars: pefile.Read, Data: relocs},
		},
	}.Bytes()
}

// shares says how many processes have a page of the file in their working sets.
func (m *machine) shares(path string, page uint64) (n uint32) {
	m.machineFile(path).seg.Each(page, 1, func(i mm.PageInfo) bool { n = i.Shares; return false })
	return n
}

func (m *machine) machineFile(path string) *looseFile { return m.files.(*imageFiles).byPath[path] }

func TestImageShared(t *testing.T) {
	m := newMachine(t, 256, 1024, Image{Arch: X64})
	file := library(0)
	m.withFiles(map[string][]byte{"/lib.dll": file})
	other, err := m.Start(Image{Arch: X64})
	is(t, "start", err, nil)
	a := m.mapImage(t, m.section(t, "/lib.dll"), 0)
	b := other.mapImage(t, other.section(t, "/lib.dll"), 0)
	if a != 0x180000000 || b != a {
		t.Fatalf("mapped at 0x%x and 0x%x, linked for 0x180000000", a, b)
	}
	expect(t, m.Process, file, a)
	expect(t, other, file, b)
	for page := uint64(0); page < 8; page++ {
		if n := m.shares("/lib.dll", page); n != 2 {
			t.Errorf("page %d of the file is in %d working sets, want 2: the code is the file's", page, n)
		}
	}

	// Data is copied when it is written, a page at a time, and nobody else sees it.
	is(t, "write", m.Write(a+0x7010, []byte("mine")), nil)
	r, _ := m.Query(a + 0x7000)
	if r.Protect != ReadWrite || r.RegionSize != PageSize {
		t.Errorf("the page that was written is %v, 0x%x bytes", r.Protect, r.RegionSize)
	}
	if r, _ := m.Query(a + 0x8000); r.Protect != WriteCopy || r.RegionSize != 2*PageSize {
		t.Errorf("the pages behind it are %v, 0x%x bytes", r.Protect, r.RegionSize)
	}
	expect(t, other, file, b)
	is(t, "write code", m.Write(a+0x1000, []byte{1}), &Exception{StatusAccessViolation, Write, a + 0x1000})
	is(t, "execute data", m.Execute(a+0x7000), &Exception{StatusAccessViolation, Fetch, a + 0x7000})
	is(t, "execute code", m.Execute(a+0x1000), nil)

	// A patch of code is a copy as well: VirtualProtect gives WRITECOPY for READWRITE.
	old, err := m.Protect(a+0x1000, 1, ExecuteReadWrite)
	is(t, "protect", err, nil)
	if r, _ := m.Query(a + 0x1000); old != ExecuteRead || r.Protect != ExecuteWriteCopy {
		t.Errorf("%v became %v", old, r.Protect)
	}
	is(t, "patch", m.Write(a+0x1003, []byte{0xcc}), nil)
	if r, _ := m.Query(a + 0x1000); r.Protect != ExecuteReadWrite {
		t.Errorf("patched, it is %v", r.Protect)
	}
	expect(t, other, file, b)

	// What is marked as shared is written for all, at whatever base.
	c := other.mapImage(t, other.section(t, "/lib.dll"), 0x50000000)
	is(t, "write together", m.Write(a+0xA000, []byte("TOGETHER")), nil)
	for _, base := range []uint64{b, c} {
		got := make([]byte, 8)
		is(t, "read together", other.Read(base+0xA000, got), nil)
		if string(got) != "TOGETHER" {
			t.Errorf("at 0x%x the other process reads %q", base, got)
		}
	}
	is(t, "write together", other.Write(c+0xB123, []byte("back")), nil)
	got := make([]byte, 4)
	is(t, "read together", m.Read(a+0xB123, got), nil)
	if string(got) != "back" {
		t.Errorf("the other way: %q", got)
	}
	is(t, "commit", errOf(m.Alloc(a+0x1000, PageSize, MemCommit, ReadOnly)), AccessDenied)
	is(t, "reserve", errOf(m.Alloc(a+0x10000-0x1000, PageSize, MemReserve, ReadOnly)), InvalidAddress)
}

// ownPages are the pages of an image that an address shows; nil if they are the file's.
func (p *Process) ownPages(addr uint64) *imagePages {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.find(addr >> pageShift).view.at(addr >> pageShift).own
}

func TestImageBases(t *testing.T) {
	m := newMachine(t, 512, 2048, Image{Arch: X64})
	file, dynamic := library(0), library(0x40)
	m.withFiles(map[string][]byte{"/lib.dll": file, "/dyn.dll": dynamic, "/dyn2.dll": dynamic})
	h := m.section(t, "/lib.dll")
	first, second := m.mapImage(t, h, 0), m.mapImage(t, h, 0)
	third := m.mapImage(t, h, 0x40000000)
	if first != 0x180000000 || second == first || third != 0x40000000 {
		t.Errorf("mapped at 0x%x, 0x%x and 0x%x", first, second, third)
	}
	for _, base := range []uint64{first, second, third} {
		expect(t, m.Process, file, base)
	}
	// Pages with addresses are another base's own, and of all who are at that base; the others are the file's.
	other, err := m.Start(Image{Arch: X64})
	is(t, "start", err, nil)
	moved := other.mapImage(t, other.section(t, "/lib.dll"), third)
	expect(t, other, file, moved)
	if n := m.shares("/lib.dll", 1); n != 4 {
		t.Errorf("a page without addresses is in memory at %d places, want all 4", n)
	}
	const fixed = 2 << pageShift // a page with addresses
	here, there := m.ownPages(third+fixed), other.ownPages(moved+fixed)
	if here == nil || here != there {
		t.Error("at one base, two processes have different pages with addresses")
	}
	if m.ownPages(second+fixed) == here {
		t.Error("at two bases, pages with addresses are the same")
	}

	// DYNAMIC_BASE: the system chooses, and the same for everybody.
	a, b := m.mapImage(t, m.section(t, "/dyn.dll"), 0), other.mapImage(t, other.section(t, "/dyn.dll"), 0)
	c := m.mapImage(t, m.section(t, "/dyn2.dll"), 0)
	if a == 0x180000000 || a != b || c == a {
		t.Errorf("the system chose 0x%x, 0x%x, and for another library 0x%x", a, b, c)
	}
	expect(t, m.Process, dynamic, a)
	expect(t, other, dynamic, b)
	expect(t, m.Process, dynamic, c)

	for _, base := range []uint64{second, third, first} {
		is(t, "unmap", m.UnmapView(base+0x1234, 0), nil)
	}
	is(t, "close", m.Close(h), nil)
	is(t, "unmap", other.UnmapView(moved, 0), nil)
}

// TestImageRefused: what is no image, or none for the process.
func TestImageRefused(t *testing.T) {
	arm := pefile.PE{Machine: 0xaa64, DLLChars: 0x140, Sections: []pefile.Section{{Chars: pefile.Read, Data: []byte{1}}}}.Bytes()
	badRelocs := pefile.PE{
		Sections: []pefile.Section{{Chars: pefile.Read, Data: []byte{0, 0x10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0}}}, RelocRVA: 0x1000, RelocSize: 12,
	}.Bytes()
	x86 := pefile.PE{Machine: 0x14c, Base: 0x70000000, Sections: []pefile.Section{{Chars: pefile.Read, Data: []byte{1}}}}.Bytes()
	for _, arch := range []Arch{X64, X86, ARM64} {
		m := newMachine(t, 128, 256, Image{Arch: arch})
		m.withFiles(map[string][]byte{
			"/text": []byte("no image at all"), "/none": nil, "/cut.dll": library(0)[:0x2800], "/arm.dll": arm, "/relocs.dll": badRelocs, "/x86.dll": x86,
		})
		for path, want := range map[string]error{
			"/text": BadExeFormat, "/none": BadExeFormat, "/cut.dll": BadExeFormat, "/arm.dll": BadExeFormat, "/relocs.dll": nil, "/x86.dll": nil,
		} {
			if path == "/arm.dll" && arch == ARM64 {
				want = nil
			}
			f, _, err := m.OpenFile(FileRequest{Path: path, Access: GenericRead, Share: ShareAll, Disposition: OpenExisting})
			is(t, "open", err, nil)
			_, _, err = m.CreateSection(f, uint32(ReadOnly)|SecImage, 0, "", false)
			is(t, fmt.Sprintf("%v: %s", arch, path), err, want)
			if want == nil {
				_, _, err = m.CreateSection(f, uint32(ReadOnly)|SecImage, 0x2001, "", false)
				is(t, path+", larger than the image", err, NotEnoughMemory)
				_, _, err = m.CreateSection(f, uint32(ReadOnly)|SecImage|SecNoCache, 1, "", false)
				is(t, path+", SEC_IMAGE_NO_EXECUTE", err, nil)
			}
		}
		base := m.mapImage(t, m.section(t, "/x86.dll"), 0)
		if base != 0x70000000 {
			t.Errorf("%v: a 32-bit image is at 0x%x", arch, base)
		}
		if again := m.mapImage(t, m.section(t, "/x86.dll"), 0); again == base || again >= 1<<32 {
			t.Errorf("%v: a second time it is at 0x%x", arch, again)
		}
		if arch == X64 {
			h := m.section(t, "/relocs.dll")
			first := m.mapImage(t, h, 0)
			_, err := m.MapView(h, ViewRequest{Protection: ReadOnly})
			is(t, "an image that cannot be moved, again", err, BadExeFormat)
			is(t, "unmap", m.UnmapView(first, 0), nil)
		}
	}
}

// restless is a file that somebody overwrites while its headers are read: after so many reads.
type restless struct {
	opened
	reads *int
	next  []byte
}

func (r restless) Segment() *mm.Segment {
	if *r.reads--; *r.reads == 0 {
		_ = r.seg.Store(0, r.next)
	}
	return r.seg
}

// TestImageRewritten: the layout of an image is that of one version of its file, whenever the next one is written.
func TestImageRewritten(t *testing.T) {
	m := newMachine(t, 256, 256, Image{Arch: X64})
	sections := []pefile.Section{
		{Chars: pefile.Read | pefile.Execute, Data: bytes.Repeat([]byte{0xc3}, 0x1000)}, {Chars: pefile.Read | pefile.Write, Data: make([]byte, 0x1000)},
	}
	one := pefile.PE{Base: 0x1_8000_0000, FileAlign: 0x1000, Sections: sections}.Bytes()
	two := pefile.PE{Base: 0x2_8000_0000, FileAlign: 0x1000, Sections: []pefile.Section{sections[1], sections[0]}}.Bytes()
	m.withFiles(map[string][]byte{"/x.dll": one})
	files := m.files.(*imageFiles)
	rewritten := false
	for after := 1; ; after++ {
		l := files.byPath["/x.dll"]
		is(t, "write", l.seg.Store(0, one), nil)
		reads := after
		f := newOpenFile(m.Machine, restless{opened{l, "/x.dll"}, &reads, two})
		a, err := m.Machine.openImage(f)
		is(t, fmt.Sprintf("open, rewritten after %d reads", after), err, nil)
		want := (image.Read | image.Execute).Protection()
		if a.layout.Base == 0x2_8000_0000 {
			want, rewritten = (image.Read | image.Write).Protection(), true
		}
		if s, ok := a.layout.At(0x1000); !ok || s.Protection() != want {
			t.Errorf("rewritten after %d reads, the image at 0x%x begins with protection 0x%x", after, a.layout.Base, s.Protection())
		}
		a.release()
		if reads > 0 {
			break
		}
	}
	if !rewritten {
		t.Error("the file was never rewritten in time")
	}
}

// TestImageOnce: a library of several MiB is in memory once, however many processes have it, and back when they are gone.
func TestImageOnce(t *testing.T) {
	const size = 4 << 20
	code := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range code {
		code[i] = byte(rng.Uint32())
	}
	for _, align := range []uint32{0x1000, 0x200} { // its pages are the file's, and of the image
		t.Run(fmt.Sprintf("FileAlignment 0x%x", align), func(t *testing.T) {
			m := newMachine(t, 8192, 8192, Image{Arch: X64})
			file := pefile.PE{FileAlign: align, SectionAlign: 0x1000, Sections: []pefile.Section{{Chars: pefile.Read | pefile.Execute, Data: code}}}.Bytes()
			m.withFiles(map[string][]byte{"/big.dll": file})
			before := m.sys.Snapshot()
			var processes []*Process
			active := func() uint64 { return m.sys.Snapshot().Active }
			var after []uint64
			for range 4 {
				p, err := m.Start(Image{Arch: X64})
				is(t, "start", err, nil)
				processes = append(processes, p)
				expect(t, p, file, p.mapImage(t, p.section(t, "/big.dll"), 0))
				after = append(after, active())
			}
			pages := uint64(size / PageSize)
			if n := after[0] - before.Active; n < pages || n > pages+pages/8 {
				t.Errorf("the first process took %d pages for %d of code", n, pages)
			}
			if n := after[3] - after[0]; n > 3*pages/16 {
				t.Errorf("three more processes took %d pages: more than page tables", n)
			}
			t.Logf("%d pages of code; Active grew by %d, and for each process more by %d", pages, after[0]-before.Active, (after[3]-after[0])/3)
			for _, p := range processes {
				m.End(p)
			}
			now := m.sys.Snapshot()
			if now.Commit != before.Commit || now.Active > before.Active+1 {
				t.Errorf("when all are gone: commit %d, was %d; active %d, was %d", now.Commit, before.Commit, now.Active, before.Active)
			}
		})
	}
}

// TestImagePressure has processes load one image at once, at its base and elsewhere, on a machine that cannot hold half of it.
func TestImagePressure(t *testing.T) {
	m := newMachine(t, 48, 4096, Image{Arch: X64})
	relocs := pefile.RelocBlock(0x3000, 10<<12|0xffd, 10<<12|0x100)
	data := make([]byte, 0x60000)
	for i := range data {
		data[i] = byte(i*31 + i>>9)
	}
	file := pefile.PE{
		RelocRVA: 0x61000, RelocSize: uint32(len(relocs)),
		Sections: []pefile.Section{{Chars: pefile.Read | pefile.Execute, Data: data}, {Chars: pefile.Read, Data: relocs}},
	}.Bytes()
	m.withFiles(map[string][]byte{"/lib.dll": file})
	var wg sync.WaitGroup
	for i := range 6 {
		p, err := m.Start(Image{Arch: X64})
		is(t, "start", err, nil)
		wg.Go(func() {
			base := uint64(0)
			if i%2 == 1 {
				base = 0x60000000
			}
			for range 3 {
				h := p.section(t, "/lib.dll")
				v := p.mapImage(t, h, base)
				expect(t, p, file, v)
				if err := p.UnmapView(v, 0); err != nil {
					t.Error(err)
				}
				if err := p.Close(h); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestImageELF maps shared objects of the system's.
func TestImageELF(t *testing.T) {
	files, _ := filepath.Glob("/lib/x86_64-linux-gnu/libm.so.6")
	if len(files) == 0 {
		t.Skip("there is none")
	}
	file, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, 4096, 4096, Image{Arch: X64})
	m.withFiles(map[string][]byte{"/libm.so.6": file})
	other, err := m.Start(Image{Arch: X64})
	is(t, "start", err, nil)
	a := m.mapImage(t, m.section(t, "/libm.so.6"), 0)
	b := other.mapImage(t, other.section(t, "/libm.so.6"), 0)
	if a != b {
		t.Errorf("the system chose 0x%x and 0x%x", a, b)
	}
	expect(t, m.Process, file, a)
	expect(t, other, file, b)
	shared := 0
	for page := range uint64(len(file)) / PageSize {
		if m.shares("/libm.so.6", page) == 2 {
			shared++
		}
	}
	if shared*10 < len(file)/PageSize*9 {
		t.Errorf("%d of %d pages of the file are shared", shared, len(file)/PageSize)
	}
}
