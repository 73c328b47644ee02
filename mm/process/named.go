package process

// Names that real programs share: the file of a named section is there for them too, and a file that one of them has made
// under a name is a section for the processes.

// SharedNames is what Files does besides, if it shows the files of named sections to real programs.
type SharedNames interface {
	// Adopt opens the file that a real program made under a section's name. FileNotFound: there is none.
	Adopt(p *Process, name string) (File, error)
	// Allows says whether a process may use the file of a named section, to write if so asked. AccessDenied.
	Allows(p *Process, f File, write bool) error
	// Share shows real programs a file of the mount under the name of a section over it as well, if the process's owner may do
	// that with the file. AlreadyExists: one of them has made a file of that name.
	Share(p *Process, f File, name string) error
	// Unshare undoes Share. It does nothing if the name is not the file's any more.
	Unshare(f File, name string)
}

// named finds the object of a name, with a reference for a handle to be; a file that a real program made under it becomes
// one, size bytes long if it has no size yet. FileNotFound; AccessDenied for a section that is somebody else's.
func (p *Process) named(name string, access uint32, size uint64) (kernelObject, error) {
	m := p.machine
	shared, ok := m.files.(SharedNames)
	there := m.lookUp(name)
	if there == nil && ok {
		var err error
		if there, err = p.adopt(shared, name, size); err != nil {
			return nil, err
		}
	}
	if there == nil {
		return nil, FileNotFound
	}
	if s, is := there.(*Section); is && ok {
		if err := shared.Allows(p, s.file.File, access&SectionMapWrite != 0); err != nil {
			m.dereference(there, true)
			return nil, err
		}
	}
	return there, nil
}

// adopt makes a section of a file that a real program made under its name: all of the file, promised space as a section
// of the page file is, if the process may write it.
func (p *Process) adopt(shared SharedNames, name string, size uint64) (kernelObject, error) {
	m := p.machine
	f, err := shared.Adopt(p, name)
	if err != nil {
		return nil, err
	}
	var now uint64
	err = m.waitingFor(func() error {
		if now = uint64(f.Measure()); now > 0 || size == 0 {
			return nil
		}
		if err := shared.Allows(p, f, true); err != nil { // to read is not enough to change it
			return err
		}
		now = size
		return f.Extend(int64(size))
	})
	if err != nil {
		f.Close()
		return nil, resized(err)
	}
	if now == 0 {
		f.Close()
		return nil, FileInvalid
	}
	pages := (now + PageSize - 1) >> pageShift
	if shared.Allows(p, f, true) == nil { // who may only read it takes no space for it either: stores are promised theirs one by one
		err = f.Segment().Commit(0, pages-1)
	}
	if err == nil {
		err = m.sys.ChargeRecord(sectionBytes)
	}
	if err != nil {
		f.Close()
		return nil, win32(err)
	}
	s := &Section{
		machine: m, protection: ReadWrite, attributes: SecCommit, pageFile: true, size: pages << pageShift,
		file: newOpenFile(m, f), subsections: []Subsection{{Pages: pages, Segment: f.Segment()}},
	}
	m.reference(s.file)
	if there := m.publish(s, name); there != nil { // another process was faster
		s.destroy()
		return there, nil
	}
	return s, nil
}

// share shows real programs the file of a section that has just got a name. AlreadyExists: one of them was faster, and the
// section has no name any more.
func (p *Process) share(s *Section, name string) error {
	shared, ok := p.machine.files.(SharedNames)
	if !ok || s.pageFile || name == "" {
		return nil
	}
	err := shared.Share(p, s.file.File, name)
	if err != nil {
		p.machine.Unname(name, func(f File) bool { return f == s.file.File })
	}
	return win32(err)
}

// Unname takes the name of the section over a file away from processes: a real program has removed the file. What has the
// section open keeps it.
func (m *Machine) Unname(name string, of func(File) bool) {
	m.objects.Lock()
	defer m.objects.Unlock()
	if s, ok := m.names[name].(*Section); ok && of(s.file.File) {
		delete(m.names, name)
		s.name = ""
	}
}

// UsesFiles says whether a call of the process, or an access to its memory, may have to wait for real programs: it has
// handles, or views.
func (p *Process) UsesFiles() bool {
	p.handles.mu.Lock()
	handles := len(p.handles.open)
	p.handles.mu.Unlock()
	if handles > 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.vads {
		if v.view != nil {
			return true
		}
	}
	return false
}
