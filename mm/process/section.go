package process

import (
	"errors"
	"time"

	"memfs/mapping/image"
	"memfs/mm"
)

// The SEC_ attributes of CreateFileMapping (winnt.h).
const (
	SecFile         = 0x800000
	SecImage        = 0x1000000
	SecReserve      = 0x4000000
	SecCommit       = 0x8000000
	SecNoCache      = 0x10000000
	SecWriteCombine = 0x40000000
	SecLargePages   = 0x80000000

	secMask = SecFile | SecImage | SecReserve | SecCommit | SecNoCache | SecWriteCombine | SecLargePages
)

// The rights to a section.
const (
	SectionQuery              = 0x1
	SectionMapWrite           = 0x2
	SectionMapRead            = 0x4
	SectionMapExecute         = 0x8
	SectionExtendSize         = 0x10
	SectionMapExecuteExplicit = 0x20
	SectionAllAccess          = 0xF001F
)

// Section is a section object as processes see it (Windows Internals 7 ch. 5, "Section objects"): what CreateFileMapping
// makes and views show. Its pages are those of a file's segment: of a file of the mount, or of one that is made for it. Two
// sections over one file share its pages. A section keeps its file.
type Section struct {
	object
	machine *Machine

	file       *openFile
	pageFile   bool // backed by the page file: file is there for this section only
	size       uint64
	protection Protection
	attributes uint32      // SEC_
	image      *basedImage // at the base that the system has chosen; nil = a data section

	// subsections are the pages, ascending from page 0 and without gaps: one of a data section, more of an image.
	subsections []Subsection

	views  int    // Machine.objects
	serial uint64 // of all sections; Machine.objects
}

// Subsection is consecutive pages of a section that show consecutive pages of a segment.
type Subsection struct {
	Pages   uint64
	Segment *mm.Segment
	Page    uint64 // of the segment, that the first one shows
	// Protection is what an image's pages are mapped with; views of data sections have their own.
	Protection Protection

	own *imagePages // whose segment it is; nil = a file's
}

// SectionInfo is what NtQuerySection and the section's control files say.
type SectionInfo struct {
	Name       string // without Local\; empty = none
	Path       string // of its file; empty = page-file-backed
	Size       uint64 // MaximumSize
	Protection Protection
	Attributes uint32 // AllocationAttributes: SEC_FILE for a data file's, whatever was asked for
	Handles    int
	References int
	Views      int
	// Subsections are copied.
	Subsections []Subsection
	Image       *ImageInfo // nil = a data section
}

// Info describes the section at this moment.
func (s *Section) Info() SectionInfo {
	s.machine.objects.Lock()
	i := s.infoLocked()
	s.machine.objects.Unlock()
	i.Path = s.file.Path() // which may take locks of the filesystem's
	return i
}

// infoLocked is Info without the path, with Machine.objects held, which the analyser cannot see.
//
// +checklocksignore
func (s *Section) infoLocked() SectionInfo {
	i := SectionInfo{
		Name: s.name, Size: s.size, Protection: s.protection, Attributes: s.attributes,
		Handles: s.handles, References: s.refs, Views: s.views, Subsections: append([]Subsection(nil), s.subsections...),
	}
	if s.image != nil {
		i.Image = s.image.info()
	}
	return i
}

// use is what a view of the section is, for maps: the path of its file, or its name.
func (s *Section) use() string {
	i := s.Info()
	switch {
	case !s.pageFile && i.Path == "":
		return "(deleted)"
	case !s.pageFile:
		return i.Path
	case i.Name != "":
		return "section:" + i.Name
	}
	return "section"
}

// QuerySection is NtQuerySection. InvalidHandle; AccessDenied without the right to ask.
func (p *Process) QuerySection(h Handle) (SectionInfo, error) {
	s, access, done, err := use[*Section](p, h)
	if err != nil {
		return SectionInfo{}, err
	}
	defer done()
	if access&SectionQuery == 0 {
		return SectionInfo{}, AccessDenied
	}
	return s.Info(), nil
}

// File is what has the section's pages.
func (s *Section) File() File { return s.file.File }

// PageFileBacked says that the section has no file of the mount.
func (s *Section) PageFileBacked() bool { return s.pageFile }

func (s *Section) destroy() {
	s.machine.unlisted(s)
	s.machine.sys.ReleaseRecord(sectionBytes)
	if s.image != nil {
		a := s.image.area
		s.image.unmap()
		a.release()
	}
	s.machine.dereference(s.file, false)
}

func (s *Section) unnamed() {
	if s.pageFile {
		s.file.Unlink()
	} else if shared, ok := s.machine.files.(SharedNames); ok {
		shared.Unshare(s.file.File, s.name)
	}
}

func (s *Section) grant(has, want uint32) uint32 {
	if want&SectionMapExecuteExplicit != 0 {
		want |= SectionMapExecute
	}
	return has & want
}

// sectionAccess is what FILE_MAP_ and SECTION_ bits ask for, taken literally, save that FILE_MAP_COPY alone is a right to read
// and FILE_MAP_EXECUTE is not a right of its own.
func sectionAccess(want uint32) uint32 {
	if want == FileMapCopy {
		return SectionMapRead
	}
	if want&SectionMapExecuteExplicit != 0 {
		want |= SectionMapExecute
	}
	return want & SectionAllAccess
}

// sectionBytes is what a section costs in records, as charged.
const sectionBytes = 256

// granted is the access that the protection of CreateFileMapping gives its handle.
func granted(p Protection) uint32 {
	const required = 0xF0000
	switch p {
	case ReadWrite:
		return required | SectionQuery | SectionMapRead | SectionMapWrite
	case ExecuteRead, ExecuteWriteCopy:
		return required | SectionQuery | SectionMapRead | SectionMapExecute
	case ExecuteReadWrite:
		return SectionAllAccess
	}
	return required | SectionQuery | SectionMapRead
}

// fileAccess is what a file's handle must allow for a section of a protection.
func fileAccess(p Protection) uint32 {
	switch p {
	case ReadWrite:
		return fileRead | fileWrite
	case ExecuteRead, ExecuteWriteCopy:
		return fileRead | fileExecute
	case ExecuteReadWrite:
		return fileRead | fileWrite | fileExecute
	}
	return fileRead
}

// sectionProtection says whether a section can be of a protection.
func sectionProtection(p Protection) bool {
	switch p {
	case ReadOnly, ReadWrite, WriteCopy, ExecuteRead, ExecuteReadWrite, ExecuteWriteCopy:
		return true
	}
	return false
}

// attributes checks the SEC_ bits and returns those that the section will have.
func (p *Process) attributes(sec uint32, ofFile bool) (uint32, error) {
	switch {
	case sec&SecFile != 0:
		return 0, InvalidParameter
	case sec&SecImage != 0 && sec&^(SecImage|SecNoCache) != 0:
		return 0, InvalidParameter
	case sec&SecImage != 0:
		return sec, nil
	case sec == 0:
		sec = SecCommit
	case sec&(SecCommit|SecReserve) == 0, sec&SecCommit != 0 && sec&SecReserve != 0:
		return 0, InvalidParameter
	case sec&SecLargePages != 0 && (ofFile || sec&SecReserve != 0):
		return 0, InvalidParameter
	}
	return sec, nil
}

const (
	tooManyPages = 8 << 40   // a section of so many bytes has more prototype PTEs than there is room for
	tooBig       = 128 << 40 // no address space has room for it
)

// CreateSection is CreateFileMapping. file is NoHandle or 0 for a section that is backed by the page file. flags are a
// protection with SEC_ bits. existed says that a section of that name was there already, and is what the handle is of.
func (p *Process) CreateSection(file Handle, flags uint32, size uint64, name string, inherit bool) (h Handle, existed bool, err error) {
	prot, sec := Protection(flags&^secMask), flags&secMask
	ofFile := file != NoHandle && file != 0
	if sec, err = p.attributes(sec, ofFile); err != nil {
		return 0, false, err
	}
	if !sectionProtection(prot) || sec == SecImage|SecNoCache && prot != ReadOnly {
		return 0, false, InvalidParameter
	}
	if name, err = sectionName(name); err != nil {
		return 0, false, err
	}
	if ofFile {
		if err := p.showable(file, prot); err != nil {
			return 0, false, err
		}
	}
	// A name that is there and cannot be opened is one that is just coming or going.
	const patience, step = 100, time.Millisecond
	for tries := 0; ; tries++ {
		if name != "" {
			switch there, err := p.named(name, granted(prot), size); {
			case err == nil:
				return p.existing(there, prot, inherit)
			case err != FileNotFound:
				return 0, false, err
			}
		}
		s := &Section{machine: p.machine, protection: prot, attributes: sec, pageFile: !ofFile}
		h, existed, err = p.makeSection(s, file, size, name, inherit)
		if !errors.Is(err, AlreadyExists) || tries == patience {
			return h, existed, err
		}
		time.Sleep(step)
	}
}

// makeSection gives a new section its pages and its name, and opens it. AlreadyExists: the name is somebody else's meanwhile.
func (p *Process) makeSection(s *Section, file Handle, size uint64, name string, inherit bool) (h Handle, existed bool, err error) {
	m := p.machine
	if err := m.sys.ChargeRecord(sectionBytes); err != nil {
		return 0, false, win32(err)
	}
	if s.pageFile {
		err = p.pageFileBacked(s, size, name)
	} else {
		err = p.overFile(s, file, size)
	}
	if err != nil {
		m.sys.ReleaseRecord(sectionBytes)
		return 0, false, err
	}
	if there := m.publish(s, name); there != nil {
		s.unnamed()
		s.destroy()
		m.dereference(there, true) // whether we may open it is named's to say
		return 0, false, AlreadyExists
	}
	if err := p.share(s, name); err != nil {
		m.dereference(s, true)
		return 0, false, err
	}
	h, err = p.open(handle{object: s, access: granted(s.protection), inherit: inherit})
	return h, false, err
}

// existing opens a handle of an object that has the name already, and whose reference is ours.
func (p *Process) existing(there kernelObject, prot Protection, inherit bool) (Handle, bool, error) {
	if _, ok := there.(*Section); !ok {
		p.machine.dereference(there, true)
		return 0, false, InvalidHandle
	}
	h, err := p.open(handle{object: there, access: granted(prot), inherit: inherit})
	return h, true, err
}

// OpenSection is OpenFileMapping. FileNotFound; InvalidHandle if the name is another kind of object's.
func (p *Process) OpenSection(access uint32, inherit bool, name string) (Handle, error) {
	if name == "" {
		return 0, InvalidParameter
	}
	name, err := sectionName(name)
	if err != nil {
		return 0, err
	}
	there, err := p.named(name, sectionAccess(access), 0)
	if err != nil {
		return 0, err
	}
	if _, ok := there.(*Section); !ok {
		p.machine.dereference(there, true)
		return 0, InvalidHandle
	}
	return p.open(handle{object: there, access: sectionAccess(access), inherit: inherit})
}

// pageFileBacked gives a section pages of its own.
func (p *Process) pageFileBacked(s *Section, size uint64, name string) error {
	switch {
	case s.attributes&SecImage != 0:
		return BadExeFormat
	case size == 0:
		return InvalidParameter
	case size >= tooBig:
		return NotEnoughMemory
	case s.attributes&SecReserve != 0 && size >= tooManyPages:
		return NoSystemResources
	}
	if s.attributes&SecLargePages != 0 {
		if err := p.mayHaveLarge(0, size); err != nil {
			return err
		}
	}
	size = (size + PageSize - 1) &^ (PageSize - 1)
	if s.attributes&SecCommit != 0 && size>>pageShift > p.machine.sys.Snapshot().CommitLimit {
		return CommitmentLimit // before anything is made for it
	}
	f, err := p.machine.files.NewSection(p, name, int64(size))
	if err != nil {
		return win32(err)
	}
	s.file = newOpenFile(p.machine, f)
	s.size = size
	s.subsections = []Subsection{{Pages: size >> pageShift, Segment: f.Segment()}}
	p.machine.reference(s.file)
	if s.attributes&SecCommit == 0 {
		return nil
	}
	err = win32(f.Segment().Commit(0, size>>pageShift-1))
	if err == nil && s.attributes&SecLargePages != 0 {
		err = largeSection(f.Segment())
	}
	if err != nil {
		if name != "" {
			f.Unlink()
		}
		p.machine.dereference(s.file, false)
	}
	return err
}

// showable says whether a section of a protection can be made with the handle of a file. InvalidHandle, AccessDenied.
func (p *Process) showable(file Handle, prot Protection) error {
	_, access, done, err := use[*openFile](p, file)
	if err != nil {
		return err
	}
	defer done()
	if need := fileAccess(prot); access&need != need {
		return AccessDenied
	}
	return nil
}

// overFile has a section show a file.
func (p *Process) overFile(s *Section, file Handle, size uint64) error {
	f, _, done, err := use[*openFile](p, file)
	if err != nil {
		return err
	}
	defer done()
	if s.attributes&SecImage != 0 {
		err = p.machine.imageOf(s, f, size, func(i *image.Image) bool { return mappable(p.image.Arch, i.Machine) })
	} else {
		err = p.dataOf(s, f, size)
	}
	if err == nil {
		s.file = f
		p.machine.reference(f)
	}
	return err
}

// dataOf makes a section of a file's bytes.
func (p *Process) dataOf(s *Section, f *openFile, size uint64) error {
	s.attributes = SecFile | s.attributes&(SecNoCache|SecWriteCombine)
	n, err := f.measure()
	if err != nil {
		return err
	}
	now := uint64(n)
	if size == 0 {
		if size = now; size == 0 {
			return FileInvalid
		}
	}
	switch {
	case size > mm.MaxSize:
		return NotEnoughMemory
	case size > now && !s.protection.shares():
		return NotEnoughMemory // STATUS_SECTION_TOO_BIG
	case size > now:
		if err := f.resize(func() error { return f.Extend(int64(size)) }); err != nil {
			return err
		}
	}
	s.size = size
	s.subsections = []Subsection{{Pages: (size + PageSize - 1) >> pageShift, Segment: f.Segment()}}
	return nil
}

// shares says that writers of the memory write what others see.
func (p Protection) shares() bool { return p&(ReadWrite|ExecuteReadWrite) != 0 }

// imageOf makes a section of an executable file that fits. BadExeFormat; NotEnoughMemory if it is to be larger than the image.
func (m *Machine) imageOf(s *Section, f *openFile, size uint64, fits func(*image.Image) bool) error {
	a, err := m.openImage(f)
	if err != nil {
		return err
	}
	if !fits(a.layout) {
		a.release()
		return BadExeFormat
	}
	if size > a.layout.Size {
		a.release()
		return NotEnoughMemory // STATUS_SECTION_TOO_BIG
	}
	b, err := a.mapAt(a.base)
	if err != nil {
		a.release()
		return err
	}
	s.attributes |= SecFile
	s.size, s.image, s.subsections = a.layout.Size, b, b.subsections
	if size != 0 {
		s.size = size
	}
	return nil
}
