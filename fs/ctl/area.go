package ctl

import (
	"strings"

	"memfs/mm/process"
)

// areaFields sums a file's control area up: the sections of processes over it, with their handles, references (handles and
// views included), views and subsections, and the protections that they were made with.
func areaFields(d *Doc, a *process.ControlArea) {
	var handles, references, subsections int
	var protections []string
	seen := make(map[process.Protection]bool)
	for _, s := range a.Sections {
		handles += s.Handles
		references += s.References
		subsections += len(s.Subsections)
		if !seen[s.Protection] {
			seen[s.Protection] = true
			protections = append(protections, s.Protection.String())
		}
	}
	d.Field("Sections", "sections", Count(uint64(len(a.Sections))))
	d.Field("Handles", "handles", Count(uint64(handles)))
	d.Field("References", "references", Count(uint64(references)))
	d.Field("Views", "views", Count(uint64(len(a.Views))))
	d.Field("Subsections", "subsections", Count(uint64(subsections)))
	protection := None()
	if len(protections) > 0 {
		protection = Word(strings.Join(protections, ","))
	}
	d.Field("Protections", "protections", protection)
}

// sectionAttributes are the SEC_ constants that a section can have.
var sectionAttributes = []struct {
	bits uint32
	name string
}{
	{process.SecFile, "SEC_FILE"}, {process.SecImage, "SEC_IMAGE"}, {process.SecReserve, "SEC_RESERVE"},
	{process.SecCommit, "SEC_COMMIT"}, {process.SecNoCache, "SEC_NOCACHE"}, {process.SecWriteCombine, "SEC_WRITECOMBINE"},
	{process.SecLargePages, "SEC_LARGE_PAGES"},
}

func attributes(bits uint32) Value {
	var names []string
	for _, a := range sectionAttributes {
		if bits&a.bits != 0 {
			names = append(names, a.name)
		}
	}
	if len(names) == 0 {
		return None()
	}
	return Word(strings.Join(names, "|"))
}

// fileViews is a file's control area in two tables: a line a section, and a line a view, which says whose.
func fileViews(f *RegularFile) *Doc {
	d := new(Doc)
	d.Table("sections", []Column{
		{Head: "Section", Key: "section", Width: 7}, {Head: "Size", Key: "size_bytes", Width: 12},
		{Head: "Handles", Key: "handles", Width: 7}, {Head: "References", Key: "references", Width: 10},
		{Head: "Views", Key: "views", Width: 5}, {Head: "Subsections", Key: "subsections", Width: 11},
		{Head: "Protection", Key: "protection", Width: 22, Left: true}, {Head: "Attributes", Key: "attributes", Width: 22, Left: true},
		{Head: "Name", Key: "name", Left: true},
	}, func(yield func([]Value) bool) {
		for i, s := range f.Area.Sections {
			name := None()
			if s.Name != "" {
				name = Word(s.Name)
			}
			if !yield([]Value{Count(uint64(i)), Count(s.Size), Count(uint64(s.Handles)), Count(uint64(s.References)),
				Count(uint64(s.Views)), Count(uint64(len(s.Subsections))), protection(s.Protection), attributes(s.Attributes), name}) {
				return
			}
		}
	})
	d.Lines("", "")
	d.Table("views", []Column{
		{Head: "Section", Key: "section", Width: 7}, {Head: "Pid", Key: "pid", Width: 7}, {Head: "Base", Key: "base", Width: 14, Digits: 12},
		{Head: "Size", Key: "size_bytes", Width: 12}, {Head: "Offset", Key: "offset_bytes", Width: 12},
		{Head: "Protection", Key: "protection", Left: true},
	}, func(yield func([]Value) bool) {
		for _, v := range f.Area.Views {
			if !yield([]Value{Count(uint64(v.Section)), Count(uint64(v.Process)), Hex(v.Base), Count(v.Size), Count(v.Offset),
				protection(v.Protection)}) {
				return
			}
		}
	})
	return d
}
