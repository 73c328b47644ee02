package ctl

import (
	"memfs/mm"
	"memfs/mm/pfn"
)

// Place names what a frame's page belongs to.
type Place struct {
	Inode uint64 // of a file; 0 is none
	Pid   uint64 // of a simulated process; 0 is none
	Name  string // the file's path, the process's name
}

// maxPlaces bounds what is remembered of places while the database is listed: neighbouring frames often hold pages of one
// file, and to find its path costs more than all else.
const maxPlaces = 256

// places answers for one listing whose a frame is.
type places struct {
	mount *Mount
	known map[any]Place
}

func (p *places) of(f *mm.FrameInfo) Place {
	var key any
	switch {
	case f.Host != nil:
		key = f.Host
	case f.Space != nil:
		key = f.Space
	default:
		return Place{}
	}
	if place, ok := p.known[key]; ok {
		return place
	}
	var place Place
	switch {
	case f.Host != nil && p.mount.FileOf != nil:
		place = p.mount.FileOf(f.Host)
	case f.Space != nil && p.mount.Processes != nil:
		place = p.process(f.Space)
	}
	if len(p.known) >= maxPlaces {
		clear(p.known)
	}
	p.known[key] = place
	return place
}

func (p *places) process(s *mm.Space) Place {
	for _, c := range p.mount.Processes() {
		if c.Owns(s) {
			return Place{Pid: uint64(c.ID()), Name: c.Name}
		}
	}
	return Place{}
}

// frames is the PFN database, a line a frame, listed while it is read.
func frames(m *Mount) *Doc {
	d := new(Doc)
	d.Table("frames", []Column{
		{Head: "Frame", Key: "frame", Width: 8},
		{Head: "List", Key: "list", Width: 15},
		{Head: "Prio", Key: "priority", Width: 4},
		{Head: "Refs", Key: "refs", Width: 4},
		{Head: "Shares", Key: "shares", Width: 6},
		{Head: "Dirty", Key: "dirty", Width: 5},
		{Head: "Host", Key: "host", Width: 4},
		{Head: "Why", Key: "why", Width: 13},
		{Head: "Use", Key: "use", Width: 8},
		{Head: "Inode", Key: "inode", Width: 8},
		{Head: "Page", Key: "page", Width: 10},
		{Head: "Pid", Key: "pid", Width: 6},
		{Head: "Address", Key: "address", Width: 12},
		{Head: "PageFile", Key: "pagefile", Width: 8},
		{Head: "Slot", Key: "slot", Width: 10},
		{Head: "Name", Key: "name"},
	}, func(yield func([]Value) bool) {
		whose := places{mount: m, known: make(map[any]Place)}
		row := make([]Value, 16)
		m.EachFrame(func(f *mm.FrameInfo) bool {
			frameRow(row, f, whose.of(f))
			return yield(row)
		})
	})
	return d
}

func frameRow(row []Value, f *mm.FrameInfo, p Place) {
	clear(row) // None
	row[0], row[1], row[7], row[8] = Count(f.Frame), Word(f.State.String()), Word(f.Why.String()), Word(f.Use.String())
	row[3], row[4] = Count(uint64(f.Refs)), Count(uint64(f.Shares))
	row[15] = None()
	if f.Use == mm.FileFrame || f.Use == mm.PrivateFrame || f.Use == mm.CombinedFrame {
		row[2], row[5], row[6] = Count(uint64(f.Priority)), Flag(f.Dirty), Flag(f.Cached)
	}
	if f.State == pfn.Standby {
		row[2] = Count(uint64(f.Priority))
	}
	switch f.Use {
	case mm.FileFrame:
		row[10] = Count(f.Page)
		if p.Inode != 0 {
			row[9] = Count(p.Inode)
		}
	case mm.PrivateFrame:
		row[12] = Hex(f.Page << mm.PageShift)
		if p.Pid != 0 {
			row[11] = Count(p.Pid)
		}
	}
	if file, slot, ok := f.Copy(); ok {
		row[13], row[14] = Count(uint64(file)), Count(slot)
	}
	if p.Name != "" {
		row[15] = Word(p.Name)
	}
}
