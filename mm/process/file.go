package process

import "memfs/mm"

// File is a file of the mount as simulated processes use it: what CreateFile opens and sections show. The filesystem
// implements it; here it is only used. A *File* value belongs to one opening: Close ends it. The methods may be called at
// once from several goroutines, and wait for the host or for I/O with no lock of this package held. Errors are of type Error
// or mm.Status.
type File interface {
	// Segment has its pages, which a section over the file shares with everybody else who uses it, real programs too: loads and
	// stores go through its Fetch and Edit.
	Segment() *mm.Segment
	// Path is its name in the mount, beginning with a slash; empty for what is behind a page-file-backed section.
	Path() string
	// Size is its size in bytes as far as the host has told. It waits for nothing.
	Size() int64
	// Measure is Size with what real programs have appended and the host has not sent, for which it waits.
	Measure() int64
	// SetSize makes it shorter or longer, as ftruncate(2) does, for real programs as well. Whether views forbid it has been
	// looked at. DiskFull or mm.StatusCommitmentLimit: no space.
	SetSize(size int64) error
	// Extend makes it at least size bytes long, and no shorter, whatever real programs do to it at the same time. Errors as
	// SetSize.
	Extend(size int64) error
	// Unlink takes the name of a page-file-backed section away, whose last handle is closed. Views keep its pages until Close.
	Unlink()
	// Remove takes away the name that the file was opened by, or has since. What is open or mapped keeps its pages.
	Remove()
	// Close says that no handle, section or view of any process uses the file any more.
	Close()
}

// Files opens files of the mount, for a process and with the rights of its owner.
type Files interface {
	// Open opens or makes the regular file at path, which has slashes; existed says whether it was there. d is CreateNew,
	// OpenExisting or OpenAlways: nothing is truncated here. FileNotFound, PathNotFound, FileExists, AccessDenied.
	Open(p *Process, path string, access uint32, d Disposition) (f File, existed bool, err error)
	// Remove is DeleteFile. What is open or mapped keeps its pages.
	Remove(p *Process, path string) error
	// NewSection makes the file behind a new page-file-backed section, size bytes of zeros without a promise of space. name is
	// what processes call it, Local\ cut off, and empty if it has none. AlreadyExists: a real program has made a file of that
	// name meanwhile.
	NewSection(p *Process, name string, size int64) (File, error)
}

// The GENERIC_ rights that CreateFile knows.
const (
	GenericRead    = 0x80000000
	GenericWrite   = 0x40000000
	GenericExecute = 0x20000000
	GenericAll     = 0x10000000

	// Delete is the right to remove the file.
	Delete = 0x10000
)

// Disposition is what CreateFile does about a file that is there, or is not.
type Disposition uint32

// The dispositions.
const (
	CreateNew        Disposition = 1
	CreateAlways     Disposition = 2
	OpenExisting     Disposition = 3
	OpenAlways       Disposition = 4
	TruncateExisting Disposition = 5
)

// SetFiles says where processes' files are. It is called before the first process starts; without it there are no files but
// those behind page-file-backed sections.
func (m *Machine) SetFiles(f Files) { m.files = f }

// noFiles is the files of a machine without a mount.
type noFiles struct{ sys *mm.System }

func (noFiles) Open(*Process, string, uint32, Disposition) (File, bool, error) {
	return nil, false, FileNotFound
}

func (noFiles) Remove(*Process, string) error { return FileNotFound }

func (n noFiles) NewSection(_ *Process, _ string, size int64) (File, error) {
	return &looseFile{seg: n.sys.NewSegment(nil), size: size}, nil
}

// looseFile is pages without a name in any mount: no real program can have a copy of them.
type looseFile struct {
	seg  *mm.Segment
	size int64
}

func (f *looseFile) Segment() *mm.Segment { return f.seg }
func (f *looseFile) Path() string         { return "" }
func (f *looseFile) Size() int64          { return f.size }
func (f *looseFile) Measure() int64       { return f.size }
func (f *looseFile) SetSize(int64) error  { return AccessDenied }
func (f *looseFile) Extend(int64) error   { return AccessDenied }
func (f *looseFile) Unlink()              {}
func (f *looseFile) Remove()              {}
func (f *looseFile) Close()               { f.seg.Delete() }
