package process

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestOneCopy has ten processes map one file, write to copies of a part of it and unmap it: memory grows by one copy of the
// file and by each process's own pages, apart from the page tables' records, and all of it comes back.
func TestOneCopy(t *testing.T) {
	const filePages, copied, processes = 2048, 32, 10
	sys := newSystem(t, 8192, 24576)
	m := NewMachine(sys, OptIn, Listener{})
	files := &memoryFiles{noFiles{sys}, make(map[string]*looseFile)}
	m.SetFiles(files)
	f, _, _ := files.Open(nil, "/big", 0, OpenAlways)
	if err := errors.Join(f.SetSize(filePages*PageSize), f.Segment().Store(0, slices.Repeat([]byte("page"), filePages*PageSize/4))); err != nil {
		t.Fatal(err)
	}
	own := func() (active, commit uint64) {
		s := sys.Snapshot()
		return s.Active - s.RecordFrames, s.FileCommit
	}
	before, commit := own()
	var all []*Process
	var views []uint64
	for range processes {
		p, err := m.Start(Image{Arch: X64})
		if err != nil {
			t.Fatal(err)
		}
		file, _, err := p.OpenFile(FileRequest{Path: "/big", Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenExisting})
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := p.CreateSection(file, uint32(ReadWrite), 0, "", false)
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.MapView(h, ViewRequest{Protection: WriteCopy})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, filePages*PageSize)
		if err := p.Read(v, b); err != nil || string(b[len(b)-4:]) != "page" {
			t.Fatalf("%q, %v", b[len(b)-4:], err)
		}
		all, views = append(all, p), append(views, v)
	}
	if now, _ := own(); now != before+filePages {
		t.Errorf("%d processes that read a file of %d pages took %d", processes, filePages, now-before)
	}
	if p := all[3].space.Page(views[3] >> pageShift); p.Shares != processes || !p.Shared {
		t.Errorf("a page is %+v", p)
	}
	for i, p := range all {
		if err := p.Write(views[i], make([]byte, copied*PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	// Of the pages that all have copied nobody has the file's any more.
	if now, c := own(); now != before+filePages-copied+copied*processes || c != commit+processes*filePages {
		t.Errorf("copies took %d pages, and %d of commit", now-before-filePages, c-commit)
	}
	for i, p := range all {
		if err := p.UnmapView(views[i]+12345, 0); err != nil {
			t.Error(err)
		}
	}
	if now, c := own(); now != before || c != commit {
		t.Errorf("unmapped: %d pages and %d of commit are left", now-before, c-commit)
	}
	if f.Segment().Mapped() {
		t.Error("the file is still mapped")
	}
	for _, err := range append(sys.Check(), m.Check()...) {
		t.Error(err)
	}
	for _, p := range all {
		m.End(p)
	}
	files.close()
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestViewBeyondFile has a real program cut a file off below a view: what is gone is an in-page error, as SIGBUS is on POSIX.
func TestViewBeyondFile(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	files := &memoryFiles{noFiles{sys}, make(map[string]*looseFile)}
	m.SetFiles(files)
	p, _ := m.Start(Image{Arch: X64})
	file, _, err := p.OpenFile(FileRequest{Path: "/f", Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: CreateNew})
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := p.CreateSection(file, uint32(ReadWrite), 3*PageSize, "", false)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.MapView(h, ViewRequest{Protection: ReadWrite})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Write(v, make([]byte, 3*PageSize)); err != nil {
		t.Fatal(err)
	}
	f, _, _ := files.Open(nil, "/f", 0, OpenExisting)
	_ = f.SetSize(PageSize + 5)
	var e *Exception
	if err := p.Read(v+PageSize, make([]byte, 2*PageSize)); !errors.As(err, &e) || *e != (Exception{StatusInPageError, Read, v + 2*PageSize}) {
		t.Errorf("read beyond the end: %v", err)
	}
	if err := p.Write(v+2*PageSize+7, []byte{1}); !errors.As(err, &e) || *e != (Exception{StatusInPageError, Write, v + 2*PageSize + 7}) {
		t.Errorf("write beyond the end: %v", err)
	}
	if err := p.Write(v+PageSize, []byte{1}); err != nil {
		t.Error(err)
	}
	if n := f.Segment().Pages(); n != 2 {
		t.Errorf("the file has %d pages", n)
	}
	m.End(p)
	files.close()
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}

// TestSectionKeepsFile sees that a section or a view keeps a file that nobody else has open any more.
func TestSectionKeepsFile(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	p, _ := m.Start(Image{Arch: X64})
	closed := 0
	m.SetFiles(&closing{noFiles{sys}, &closed})
	file, _, err := p.OpenFile(FileRequest{Path: `\x`, Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenAlways})
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := p.CreateSection(file, uint32(ReadWrite), PageSize, "", false)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.MapView(h, ViewRequest{Protection: ReadWrite})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return p.Close(file) }, func() error { return p.Close(h) },
		func() error { return p.Write(v, []byte{1}) },
	} {
		if err := step(); err != nil || closed != 0 {
			t.Fatalf("%v, closed %d times", err, closed)
		}
	}
	if err := p.UnmapView(v, 0); err != nil || closed != 1 {
		t.Fatalf("unmapped: %v, closed %d times", err, closed)
	}
	m.End(p)
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

type closing struct {
	noFiles
	closed *int
}

type closingFile struct {
	*looseFile
	closed *int
}

func (f closingFile) SetSize(n int64) error { f.size = n; return nil }
func (f closingFile) Extend(n int64) error  { f.size = max(f.size, n); return nil }
func (f closingFile) Close()                { *f.closed++; f.looseFile.Close() }

func (c *closing) Open(*Process, string, uint32, Disposition) (File, bool, error) {
	return closingFile{&looseFile{seg: c.sys.NewSegment(nil)}, c.closed}, false, nil
}

// TestViewsAndResize has memory grow smaller while processes map pages: frames that they share move, and are counted as before.
func TestViewsAndResize(t *testing.T) {
	const pages = 120
	sys := newSystem(t, 600, 2048)
	sys.Start()
	m := NewMachine(sys, OptIn, Listener{})
	var ps []*Process
	var views []uint64
	for range 2 {
		p, err := m.Start(Image{Arch: X64})
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := p.CreateSection(NoHandle, uint32(ReadWrite), pages*PageSize, "moves", false)
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.MapView(h, ViewRequest{Protection: ReadWrite})
		if err != nil {
			t.Fatal(err)
		}
		ps, views = append(ps, p), append(views, v)
	}
	all := func(what func(p *Process, at uint64, page byte) error) {
		t.Helper()
		for i, p := range ps {
			for page := range uint64(pages) {
				if err := what(p, views[i]+page*PageSize, byte(page)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	all(func(p *Process, at uint64, page byte) error { return p.Write(at, []byte{page, page + 1}) })
	for _, frames := range []uint64{300, 60, 600} {
		b := sys.Budget()
		b.CommitLimit, b.Frames = b.PageFile+frames, frames
		if _, err := sys.Resize(b); err != nil {
			t.Fatal(err)
		}
		for _, err := range append(sys.Check(), m.Check()...) {
			t.Error(err)
		}
		all(func(p *Process, at uint64, page byte) error {
			b := make([]byte, 2)
			if err := p.Read(at, b); err != nil || b[0] != page || b[1] != page+1 {
				return fmt.Errorf("%d frames, page %d: %x, %w", frames, page, b, err)
			}
			return nil
		})
	}
	for _, p := range ps {
		m.End(p)
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestViewShown walks the page table for pages of views, and sees what maps and smaps are told of them.
func TestViewShown(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	var ps [2]*Process
	var views [2]uint64
	for i, prot := range []Protection{ReadWrite, WriteCopy} {
		p, err := m.Start(Image{Arch: X64})
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := p.CreateSection(NoHandle, uint32(ReadWrite), 2*PageSize, "shown", false)
		if err != nil {
			t.Fatal(err)
		}
		if views[i], err = p.MapView(h, ViewRequest{Protection: prot}); err != nil {
			t.Fatal(err)
		}
		ps[i] = p
	}
	usage := func(i int) RegionUsage {
		for _, u := range ps[i].Usage() {
			if u.AllocationBase == views[i] {
				return u
			}
		}
		t.Fatal("no region")
		return RegionUsage{}
	}
	if why := ps[0].Translate(views[0]).Why; !strings.Contains(why, "demand zero") {
		t.Errorf("never touched: %s", why)
	}
	if err := ps[0].Write(views[0], []byte{1}); err != nil {
		t.Fatal(err)
	}
	if tr := ps[1].Translate(views[1]); tr.Valid || !strings.Contains(tr.Why, "another working set") {
		t.Errorf("in another working set: %+v", tr)
	}
	if err := ps[1].Read(views[1], make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	a, b := ps[0].Translate(views[0]), ps[1].Translate(views[1])
	if !a.Valid || !b.Valid || a.Frame != b.Frame {
		t.Errorf("two views of one page: %+v and %+v", a, b)
	}
	if bits := b.Levels[3].Bits; slices.Contains(bits, "RW") || !slices.Contains(a.Levels[3].Bits, "RW") {
		t.Errorf("a page to be copied can be written: %v", bits)
	}
	if u := usage(0); u.Use != "section:shown" || u.Shared != 1 || u.SharedDirty != 1 || u.Committed != 0 || u.Proportional != PageSize/2 {
		t.Errorf("the view: %+v", u)
	}
	if u := usage(1); u.Shared != 1 || u.Committed != 2 || u.Resident != 1 {
		t.Errorf("the view that copies: %+v", u)
	}
	if err := ps[1].Write(views[1], []byte{2}); err != nil {
		t.Fatal(err)
	}
	if u := usage(1); u.Shared != 0 || u.Committed != 1 || u.Resident != 1 || u.Dirty != 1 || u.Protect != ReadWrite {
		t.Errorf("the copied page: %+v", u)
	}
	if b := ps[1].Translate(views[1]); !b.Valid || b.Frame == a.Frame || !slices.Contains(b.Levels[3].Bits, "RW") {
		t.Errorf("a copy: %+v", b)
	}
	for _, p := range ps {
		m.End(p)
	}
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}
