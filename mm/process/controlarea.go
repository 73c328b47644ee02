package process

import (
	"cmp"
	"slices"

	"memfs/mm"
)

// ControlArea is what processes have made of one file's pages (NT's control area): the sections over it, and the views of
// them.
type ControlArea struct {
	Sections []SectionInfo
	Views    []ViewInfo
}

// ViewInfo is one view.
type ViewInfo struct {
	Process    uint32 // ID
	Base       uint64
	Size       uint64
	Offset     uint64 // in its section
	Protection Protection
	Section    int // of ControlArea.Sections
}

// ControlArea describes the sections that show pages of a segment at this moment. It looks at every process.
func (m *Machine) ControlArea(seg *mm.Segment) (a ControlArea) {
	m.objects.Lock()
	var sections []*Section
	for s := range m.sections {
		if s.shows(seg) {
			sections = append(sections, s)
		}
	}
	slices.SortFunc(sections, func(a, b *Section) int { return cmp.Compare(a.serial, b.serial) })
	for _, s := range sections {
		a.Sections = append(a.Sections, s.infoLocked())
	}
	m.objects.Unlock()
	if len(sections) == 0 {
		return a
	}
	for _, p := range m.Processes() {
		a.Views = p.views(a.Views, sections)
	}
	return a
}

// shows says whether a section has pages of a segment.
func (s *Section) shows(seg *mm.Segment) bool {
	return s.file.Segment() == seg || slices.ContainsFunc(s.subsections, func(u Subsection) bool { return u.Segment == seg })
}

// views adds the process's views of sections.
func (p *Process) views(to []ViewInfo, of []*Section) []ViewInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.vads {
		if v.view == nil {
			continue
		}
		if i := slices.Index(of, v.view.section); i >= 0 {
			to = append(to, ViewInfo{
				Process: p.id, Base: v.first << pageShift, Size: v.pages() << pageShift, Offset: v.view.offset,
				Protection: v.protection, Section: i,
			})
		}
	}
	return to
}

// listed enters a section into the list of all, in the order in which they were made.
// +checklocks:m.objects
func (m *Machine) listed(s *Section) {
	if m.sections == nil {
		m.sections = make(map[*Section]struct{})
	}
	m.lastSection++
	s.serial = m.lastSection
	m.sections[s] = struct{}{}
}

func (m *Machine) unlisted(s *Section) {
	m.objects.Lock()
	defer m.objects.Unlock()
	delete(m.sections, s)
}
