package process

import (
	"strings"

	"memfs/mapping/image"
)

// Programs: a process that is started from an executable file has that mapped at its base, is what its header says, and has the
// stack of its first thread. Nothing is executed.

// Program is the executable file that a process was started from.
type Program struct {
	Path  string // when it was started
	Base  uint64
	Entry uint64 // address of the first instruction; 0 = none
}

// ProgramName is what a process is called that runs the file at a path.
func ProgramName(path string) string {
	return path[strings.LastIndexAny(path, `\/`)+1:]
}

// StartProgram starts a process from i.Executable, which by opens: with its rights, and sharing to read and delete. What the
// file's header says takes the place of i's. FileNotFound; BadExeFormat for what is no program, a library included;
// SharingViolation for a file that is open for writing; otherwise as Start and MapView.
func (m *Machine) StartProgram(by *Process, i Image) (*Process, error) {
	f, _, err := by.openFile(FileRequest{
		Path: i.Executable, Access: GenericRead | GenericExecute, Share: ShareRead | ShareDelete, Disposition: OpenExisting,
	})
	if err != nil {
		return nil, err
	}
	m.publish(f, "")
	defer m.dereference(f, true)
	s, err := m.programSection(f)
	if err != nil {
		return nil, err
	}
	m.publish(s, "")
	defer m.dereference(s, true)
	i.runs(s.image.area.layout)
	p, err := m.Start(i)
	if err != nil {
		return nil, err
	}
	if err := p.runProgram(s, i); err != nil {
		m.End(p)
		return nil, err
	}
	return p, nil
}

// programSection makes the image section of a program's file. BadExeFormat.
func (m *Machine) programSection(f *openFile) (*Section, error) {
	if err := m.sys.ChargeRecord(sectionBytes); err != nil {
		return nil, win32(err)
	}
	s := &Section{machine: m, protection: Execute, attributes: SecImage}
	err := m.imageOf(s, f, 0, func(i *image.Image) bool { return !i.DLL })
	if err != nil {
		m.sys.ReleaseRecord(sectionBytes)
		return nil, err
	}
	s.file = f
	m.reference(f)
	return s, nil
}

// runs has a process be what a program's header says.
func (i *Image) runs(l *image.Image) {
	switch l.Machine {
	case image.I386:
		i.Arch = X86
	case image.AMD64:
		i.Arch = X64
	case image.ARM64:
		i.Arch = ARM64
	}
	i.LargeAddressAware = l.LargeAddressAware
	i.Below2GiB = l.Bits == 64 && !l.LargeAddressAware
	i.NXCompat = l.NXCompat
	i.StackReserve, i.StackCommit = l.StackReserve, l.StackCommit
	i.HeapReserve, i.HeapCommit = l.HeapReserve, l.HeapCommit
	if i.Arch != X86 {
		i.DEP = DEPByPolicy
	}
}

// runProgram maps the program and makes its first thread's stack.
func (p *Process) runProgram(s *Section, i Image) error {
	r := ViewRequest{Protection: ReadOnly}
	if err := s.admits(&r, SectionAllAccess, p); err != nil {
		return err
	}
	base, err := p.mapView(s, &r)
	if err != nil {
		return err
	}
	l := s.image.area.layout
	if can, _ := l.Relocatable(); !can && base != l.Base {
		return InvalidAddress // STATUS_CONFLICTING_ADDRESSES: it was linked for one place only
	}
	run := &Program{Path: s.file.Path(), Base: base}
	if l.Entry != 0 {
		run.Entry = base + l.Entry
	}
	p.program.Store(run)
	_, err = p.NewThread(0)
	return err
}

// Program is what the process was started from; nil = no file.
func (p *Process) Program() *Program { return p.program.Load() }
