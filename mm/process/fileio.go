package process

import (
	"cmp"
	"errors"
	"strings"

	"memfs/mm"
)

// What a file's handle allows: the GENERIC_ rights in short.
const (
	fileRead    = 1
	fileWrite   = 2
	fileExecute = 4
	fileDelete  = 8
)

// rights are a file handle's from the access asked for.
func rights(access uint32) (r uint32) {
	for _, g := range []struct{ generic, rights uint32 }{
		{GenericRead, fileRead}, {GenericWrite, fileWrite}, {GenericExecute, fileExecute},
		{GenericAll, fileRead | fileWrite | fileExecute | fileDelete}, {Delete, fileDelete},
		{0x1, fileRead}, {0x2, fileWrite}, {0x20, fileExecute}, // FILE_READ_DATA, FILE_WRITE_DATA, FILE_EXECUTE
	} {
		if access&g.generic != 0 {
			r |= g.rights
		}
	}
	return r
}

// openFile is a file object: an opening of a file, with a position that its handles share.
type openFile struct {
	object
	File
	machine *Machine

	position uint64 // Machine.objects

	rights, mode  uint32 // of what takes part in sharing
	sharing       bool   // Machine.objects
	deleteOnClose bool
}

func newOpenFile(m *Machine, f File) *openFile { return &openFile{File: f, machine: m} }

func (f *openFile) destroy() { f.Close() }

// closed is called when the last handle is: sections may still have the file.
func (f *openFile) closed() {
	if f.deleteOnClose {
		f.Remove()
	}
	f.dropShare()
}

func (f *openFile) grant(has, want uint32) uint32 { return has & rights(want) }

// at is the position.
func (f *openFile) at() uint64 {
	f.machine.objects.Lock()
	defer f.machine.objects.Unlock()
	return f.position
}

func (f *openFile) seek(to uint64) {
	f.machine.objects.Lock()
	defer f.machine.objects.Unlock()
	f.position = to
}

// FileRequest is what CreateFile is to open, and how.
type FileRequest struct {
	Path          string
	Access        uint32 // GENERIC_ and FILE_ rights, Delete
	Share         uint32 // Share modes
	Disposition   Disposition
	DeleteOnClose bool // remove the file when the last handle of this opening is closed
	Inherit       bool
}

// OpenFile is CreateFile. existed says that the file was there, which CREATE_ALWAYS and OPEN_ALWAYS tell by the last error.
// FileNotFound, FileExists, AccessDenied; SharingViolation if another opening forbids it, or if a program that runs would be
// written; UserMappedFile if a file that is to be emptied is mapped.
func (p *Process) OpenFile(r FileRequest) (h Handle, existed bool, err error) {
	if r.Disposition < CreateNew || r.Disposition > TruncateExisting || r.Share&^ShareAll != 0 {
		return 0, false, InvalidParameter
	}
	if r.Disposition == TruncateExisting && rights(r.Access)&fileWrite == 0 {
		return 0, false, InvalidParameter
	}
	f, existed, err := p.openFile(r)
	if err != nil {
		return 0, false, err
	}
	p.machine.publish(f, "")
	h, err = p.open(handle{object: f, access: rights(r.Access), inherit: r.Inherit})
	return h, existed, err
}

// openFile is OpenFile without a handle: the file object is the caller's to publish.
func (p *Process) openFile(r FileRequest) (f *openFile, existed bool, err error) {
	path := strings.ReplaceAll(r.Path, `\`, "/")
	if path == "" || strings.ContainsRune(path, 0) {
		return nil, false, FileNotFound
	}
	open := r.Disposition
	switch r.Disposition {
	case CreateAlways:
		open, r.Access = OpenAlways, r.Access|GenericWrite
	case TruncateExisting:
		open = OpenExisting
	}
	if r.DeleteOnClose {
		r.Access |= Delete
	}
	file, existed, err := p.machine.files.Open(p, path, r.Access, open)
	if err != nil {
		return nil, false, win32(err)
	}
	f = newOpenFile(p.machine, file)
	f.deleteOnClose = r.DeleteOnClose
	if err := f.begin(r, existed && open != r.Disposition); err != nil {
		f.dropShare()
		file.Close()
		return nil, false, err
	}
	return f, existed, nil
}

// begin checks an opening against the others of its file and makes the file empty, if it is to be.
func (f *openFile) begin(r FileRequest, anew bool) error {
	want := rights(r.Access)
	if f.machine.executing(f.Segment()) {
		switch {
		case want&fileWrite != 0:
			return SharingViolation
		case r.DeleteOnClose:
			return AccessDenied // STATUS_CANNOT_DELETE
		}
	}
	if err := f.takeShare(want, r.Share); err != nil || !anew {
		return err
	}
	return empty(f)
}

// mapped says that the file cannot be made shorter by processes (MmCanFileBeTruncated).
func (f *openFile) mapped() bool { return f.Segment().Mapped() || f.machine.executing(f.Segment()) }

// empty makes a file empty that is opened anew.
func empty(f *openFile) error {
	if f.mapped() {
		if n, err := f.measure(); err != nil || n > 0 {
			return cmp.Or(err, error(UserMappedFile))
		}
	}
	return f.resize(func() error { return f.SetSize(0) }) // also if it seems to be: what programs have appended may be on its way
}

// resized is the error of a change of a file's size.
func resized(err error) error {
	if errors.Is(err, mm.StatusCommitmentLimit) {
		return DiskFull
	}
	return win32(err)
}

// RemoveFile is DeleteFile. SharingViolation if an opening does not share it; AccessDenied for a program that runs.
func (p *Process) RemoveFile(path string) error {
	m, path := p.machine, strings.ReplaceAll(path, `\`, "/")
	if f, _, err := m.files.Open(p, path, Delete, OpenExisting); err == nil { // what else there is, has no openings
		err = m.shareable(f.Segment(), fileDelete, ShareAll)
		if err == nil && m.executing(f.Segment()) {
			err = AccessDenied // STATUS_CANNOT_DELETE
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return win32(m.files.Remove(p, path))
}

// file finds an opened file whose handle has rights. done drops the reference.
func (p *Process) file(h Handle, need uint32) (f *openFile, done func(), err error) {
	f, access, done, err := use[*openFile](p, h)
	if err == nil && access&need != need {
		done()
		return nil, nil, AccessDenied
	}
	return f, done, err
}

// FileSize is GetFileSizeEx.
func (p *Process) FileSize(h Handle) (uint64, error) {
	f, done, err := p.file(h, 0)
	if err != nil {
		return 0, err
	}
	defer done()
	size, err := f.measure()
	return uint64(size), err
}

// SeekFile is SetFilePointerEx: method is FILE_BEGIN, FILE_CURRENT or FILE_END. InvalidParameter for another one,
// and for a position beyond any file's; NegativeSeek.
func (p *Process) SeekFile(h Handle, distance int64, method uint32) (uint64, error) {
	f, done, err := p.file(h, 0)
	if err != nil {
		return 0, err
	}
	defer done()
	var from uint64
	switch method {
	case 0:
	case 1:
		from = f.at()
	case 2:
		size, err := f.measure()
		if err != nil {
			return 0, err
		}
		from = uint64(size)
	default:
		return 0, InvalidParameter
	}
	to := int64(from) + distance
	switch {
	case to < 0 && distance > 0:
		return 0, InvalidParameter
	case to < 0:
		return 0, NegativeSeek
	}
	f.seek(uint64(to))
	return uint64(to), nil
}

// SetEndOfFile makes a file end at its position. UserMappedFile: that would cut it off below a view.
func (p *Process) SetEndOfFile(h Handle) error {
	f, done, err := p.file(h, fileWrite)
	if err != nil {
		return err
	}
	defer done()
	to := int64(f.at())
	if f.mapped() {
		if n, err := f.measure(); err != nil || to < n {
			return cmp.Or(err, error(UserMappedFile))
		}
	}
	return f.resize(func() error { return f.SetSize(to) })
}

// transfer is how many bytes ReadFile and WriteFile move at a time.
const transfer = 64 << 10

// ReadFile reads from a file's position into memory. All of the buffer counts as written, however little is read: the system
// has probed it.
func (p *Process) ReadFile(h Handle, addr, size uint64) (n uint64, err error) {
	f, done, err := p.file(h, fileRead)
	if err != nil {
		return 0, err
	}
	defer done()
	at := f.at()
	if err := p.touch(Write, addr, size, func(part, uint64, uint64, uint64) error { return nil }); err != nil {
		return 0, quiet(err)
	}
	end, err := f.measure()
	if err != nil {
		return 0, err
	}
	for left := min(size, uint64(max(0, end-int64(at)))); n < left; {
		b := make([]byte, min(left-n, transfer))
		if err = f.load(int64(at+n), b); err == nil {
			err = p.Write(addr+n, b)
		}
		if err != nil {
			break
		}
		n += uint64(len(b))
	}
	f.seek(at + n)
	return n, quiet(err)
}

// WriteFile writes memory to a file at its position, and makes the file longer if need be.
func (p *Process) WriteFile(h Handle, addr, size uint64) (n uint64, err error) {
	f, done, err := p.file(h, fileWrite)
	if err != nil {
		return 0, err
	}
	defer done()
	at := f.at()
	if size > mm.MaxSize-at {
		return 0, InvalidParameter // no file reaches so far
	}
	p.fetch(addr, size)
	if err := p.touch(Read, addr, size, func(part, uint64, uint64, uint64) error { return nil }); err != nil {
		return 0, quiet(err)
	}
	// The memory is not held while the file is written to: that waits for real programs. A page that somebody takes away
	// meanwhile ends it.
	if end := int64(at + size); size > 0 && end > f.Size() {
		if err := f.resize(func() error { return f.Extend(end) }); err != nil {
			return 0, err
		}
	}
	for n < size {
		b := make([]byte, min(size-n, transfer))
		if err = p.read(addr+n, b); err != nil {
			break
		}
		if err = f.store(int64(at+n), b); err != nil {
			err = resized(err)
			break
		}
		n += uint64(len(b))
	}
	f.seek(at + n)
	return n, quiet(err)
}

// measure is Measure. Busy: too many calls wait for real programs already.
func (f *openFile) measure() (n int64, err error) {
	err = f.machine.waitingFor(func() error { n = f.Measure(); return nil })
	return n, err
}

// resize is a change of the size, and Busy.
func (f *openFile) resize(change func() error) error { return resized(f.machine.waitingFor(change)) }

// load reads bytes of the file, those that real programs have written included.
func (f *openFile) load(off int64, b []byte) error {
	return f.machine.waitingFor(func() error {
		if err := f.Segment().Fetch(off, int64(len(b))); err != nil {
			return err
		}
		return f.Segment().Load(off, b)
	})
}

// store stores bytes in the file, a page at a time, as Edit wants it.
func (f *openFile) store(off int64, b []byte) error {
	return f.machine.waitingFor(func() error { return f.edit(off, b) })
}

func (f *openFile) edit(off int64, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), PageSize-int(off%PageSize))
		page := uint64(off) >> pageShift
		err := f.Segment().Edit(page, page, func() error { return f.Segment().Store(off, b[:n]) })
		if err != nil {
			return err
		}
		off, b = off+int64(n), b[n:]
	}
	return nil
}
