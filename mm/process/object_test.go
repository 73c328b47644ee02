package process

import (
	"errors"
	"sync"
	"testing"

	"memfs/mm"
)

// TestNameOfAnother: an object that lost its name, was kept by a view, and got a handle again does not take the name away from
// who has it now.
func TestNameOfAnother(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	p, err := m.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	section := func() Handle {
		h, existed, err := p.CreateSection(NoHandle, uint32(ReadWrite), PageSize, "name", false)
		if err != nil || existed {
			t.Fatalf("%v, there already: %v", err, existed)
		}
		return h
	}
	first := section()
	if _, err := p.MapView(first, ViewRequest{Protection: ReadWrite}); err != nil {
		t.Fatal(err)
	}
	e, err := p.entryOf(first) // DuplicateHandle has found it when it is closed
	if err := errors.Join(err, p.Close(first)); err != nil {
		t.Fatal(err)
	}
	section()
	if !m.keep(e.object) {
		t.Fatal("a view does not keep its section")
	}
	again, err := p.open(e)
	if err := errors.Join(err, p.Close(again)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.OpenSection(FileMapRead, false, "name"); err != nil {
		t.Errorf("the second section has lost its name: %v", err)
	}
	m.End(p)
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}

// ownedFiles are files some of which a process may not use.
type ownedFiles struct {
	*memoryFiles
	stranger *Process
}

var _ SharedNames = ownedFiles{}

func (f ownedFiles) Share(*Process, File, string) error { return nil }
func (f ownedFiles) Unshare(File, string)               {}

func (f ownedFiles) Adopt(*Process, string) (File, error) { return nil, FileNotFound }

func (f ownedFiles) Allows(p *Process, _ File, write bool) error {
	if p == f.stranger && write {
		return AccessDenied
	}
	return nil
}

// ownerAndStranger are two processes of a machine.
func ownerAndStranger(t *testing.T) (sys *mm.System, m *Machine, owner, stranger *Process) {
	t.Helper()
	sys = newSystem(t, 64, 64)
	m = NewMachine(sys, OptIn, Listener{})
	for _, p := range []**Process{&owner, &stranger} {
		var err error
		if *p, err = m.Start(Image{Arch: X64}); err != nil {
			t.Fatal(err)
		}
	}
	return sys, m, owner, stranger
}

// endBoth ends them, and checks that nothing is left.
func endBoth(t *testing.T, sys *mm.System, m *Machine, owner, stranger *Process, files interface{ close() }) {
	t.Helper()
	m.End(owner)
	m.End(stranger)
	files.close()
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}

// TestNamedFileIsProtected: the name of a section over a file is no way around the file's permissions.
func TestNamedFileIsProtected(t *testing.T) {
	sys, m, owner, stranger := ownerAndStranger(t)
	files := ownedFiles{&memoryFiles{noFiles{sys}, make(map[string]*looseFile)}, stranger}
	m.SetFiles(files)
	f, _, err := owner.OpenFile(FileRequest{Path: "/f", Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenAlways})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := owner.CreateSection(f, uint32(ReadWrite), PageSize, "name", false); err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.OpenSection(FileMapRead, false, "name"); err != nil {
		t.Errorf("to read: %v", err)
	}
	if _, err := stranger.OpenSection(FileMapWrite, false, "name"); !errors.Is(err, AccessDenied) {
		t.Errorf("to write: %v", err)
	}
	if _, _, err := stranger.CreateSection(NoHandle, uint32(ReadWrite), PageSize, "name", false); !errors.Is(err, AccessDenied) {
		t.Errorf("to write, by CreateFileMapping: %v", err)
	}
	endBoth(t, sys, m, owner, stranger, files)
}

// slowMeasure is a file whose size takes a while to be known.
type slowMeasure struct {
	File
	meanwhile func()
}

func (f slowMeasure) Measure() int64 {
	f.meanwhile()
	return f.File.Measure()
}

// measuredFiles are those in which one file is such.
type measuredFiles struct {
	ownedFiles
	meanwhile func()
}

func (f measuredFiles) Open(p *Process, path string, access uint32, d Disposition) (File, bool, error) {
	file, existed, err := f.ownedFiles.Open(p, path, access, d)
	if path == "/slow" {
		file = slowMeasure{file, f.meanwhile}
	}
	return file, existed, err
}

// TestNameOfAnotherMeanwhile: nor is it when the owner's section gets the name just before the stranger's would.
func TestNameOfAnotherMeanwhile(t *testing.T) {
	sys, m, owner, stranger := ownerAndStranger(t)
	open := func(p *Process, path string) Handle {
		f, _, err := p.OpenFile(FileRequest{Path: path, Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenAlways})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	var others Handle
	var once sync.Once
	files := measuredFiles{ownedFiles{&memoryFiles{noFiles{sys}, make(map[string]*looseFile)}, stranger}, func() {
		once.Do(func() {
			if _, _, err := owner.CreateSection(others, uint32(ReadWrite), PageSize, "name", false); err != nil {
				t.Error(err)
			}
		})
	}}
	m.SetFiles(files)
	others = open(owner, "/f")
	own := open(stranger, "/slow")
	if h, existed, err := stranger.CreateSection(own, uint32(ReadWrite), PageSize, "name", false); !errors.Is(err, AccessDenied) {
		t.Errorf("handle %#x, there already: %v; %v", h, existed, err)
	}
	endBoth(t, sys, m, owner, stranger, files)
}

// TestWriteFileTooFar: a write beyond the end of any file is refused, and stores nothing.
func TestWriteFileTooFar(t *testing.T) {
	sys := newSystem(t, 64, 64)
	m := NewMachine(sys, OptIn, Listener{})
	files := &memoryFiles{noFiles{sys}, make(map[string]*looseFile)}
	m.SetFiles(files)
	p, err := m.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := p.OpenFile(FileRequest{Path: "/f", Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenAlways})
	if err != nil {
		t.Fatal(err)
	}
	buf, err := p.Alloc(0, 2*PageSize, MemReserve|MemCommit, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1<<63 - PageSize, 1<<63 - 1} {
		if _, err := p.SeekFile(f, at, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := p.WriteFile(f, buf, 2*PageSize); n != 0 || !errors.Is(err, InvalidParameter) {
			t.Errorf("at %#x: wrote %d bytes, %v", at, n, err)
		}
		if n, err := p.ReadFile(f, buf, 2*PageSize); n != 0 || err != nil {
			t.Errorf("at %#x: read %d bytes, %v", at, n, err)
		}
	}
	if _, err := p.SeekFile(f, 1<<62, 1); !errors.Is(err, InvalidParameter) {
		t.Errorf("a position beyond any file's: %v", err)
	}
	if size, err := p.FileSize(f); size != 0 || err != nil {
		t.Errorf("the file has %d bytes, %v", size, err)
	}
	m.End(p)
	files.close()
	if err := errors.Join(append(sys.Check(), sys.Close())...); err != nil {
		t.Error(err)
	}
}
