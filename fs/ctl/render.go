package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// jsonVersion is the "v" of every JSON document. It changes when a key changes its meaning or goes away.
const jsonVersion = 1

// Value is one value of a document. How it reads as text is part of it; its JSON form is a number, a string, a boolean
// or null.
type Value struct {
	kind kind
	n    uint64
	s    string
}

type kind uint8

const (
	kindNone kind = iota
	kindCount
	kindKB
	kindBytes
	kindPages
	kindHex
	kindWord
	kindFlag
	kindHundredths
	kindMicros
)

// Count is a plain number. KB is a number of bytes that text shows in kB, as /proc/meminfo does (JSON has the bytes).
// ByteCount is a number of bytes shown as it is, Pages a number of pages, Hex a number that text shows in hexadecimal.
// Hundredths is a number with two digits behind the point. Word is text. Flag is yes or no, in JSON true or false. None is "-", in JSON null.
func Count(n uint64) Value     { return Value{kind: kindCount, n: n} }
func KB(bytes uint64) Value    { return Value{kind: kindKB, n: bytes} }
func ByteCount(n uint64) Value { return Value{kind: kindBytes, n: n} }
func Pages(n uint64) Value     { return Value{kind: kindPages, n: n} }
func Hex(n uint64) Value       { return Value{kind: kindHex, n: n} }
func Word(s string) Value      { return Value{kind: kindWord, s: s} }
func None() Value              { return Value{} }

// Hundredths is n/100.
func Hundredths(n uint64) Value { return Value{kind: kindHundredths, n: n} }

func appendHundredths(b []byte, n uint64) []byte {
	b = append(strconv.AppendUint(b, n/100, 10), '.')
	return append(b, '0'+byte(n/10%10), '0'+byte(n%10))
}

// Micros is n/1000000.
func Micros(n uint64) Value { return Value{kind: kindMicros, n: n} }

func appendMicros(b []byte, n uint64) []byte {
	return fmt.Appendf(b, "%d.%06d", n/1e6, n%1e6)
}

// Flag is yes or no.
func Flag(set bool) Value {
	if set {
		return Value{kind: kindFlag, n: 1}
	}
	return Value{kind: kindFlag}
}

// appendText appends the value without its unit, padded to width: numbers to the right, words to the left. Hex numbers
// are padded with zeros, so that a column of them is even.
func (v Value) appendText(b []byte, width int) []byte {
	start := len(b)
	switch v.kind {
	case kindNone:
		b = append(b, '-')
	case kindCount, kindBytes, kindPages:
		b = strconv.AppendUint(b, v.n, 10)
	case kindKB:
		b = strconv.AppendUint(b, v.n>>10, 10)
	case kindHex:
		b = strconv.AppendUint(b, v.n, 16)
	case kindHundredths:
		b = appendHundredths(b, v.n)
	case kindMicros:
		b = appendMicros(b, v.n)
	case kindWord:
		b = appendEscaped(b, v.s)
	case kindFlag:
		if v.n != 0 {
			b = append(b, "yes"...)
		} else {
			b = append(b, "no"...)
		}
	}
	missing := width - (len(b) - start)
	if missing <= 0 {
		return b
	}
	switch v.kind {
	case kindWord, kindFlag:
		return appendRepeat(b, ' ', missing)
	case kindHex:
		return slices.Insert(b, start, slices.Repeat([]byte{'0'}, missing)...)
	}
	return slices.Insert(b, start, slices.Repeat([]byte{' '}, missing)...)
}

func (v Value) unit() string {
	switch v.kind {
	case kindKB:
		return " kB"
	case kindBytes:
		return " bytes"
	case kindPages:
		return " pages"
	}
	return ""
}

func (v Value) appendJSON(b []byte) []byte {
	switch v.kind {
	case kindCount, kindKB, kindBytes, kindPages, kindHex:
		return strconv.AppendUint(b, v.n, 10)
	case kindHundredths:
		return appendHundredths(b, v.n)
	case kindMicros:
		return appendMicros(b, v.n)
	case kindWord:
		return appendJSONString(b, v.s)
	case kindFlag:
		return strconv.AppendBool(b, v.n != 0)
	}
	return append(b, "null"...)
}

// Column is one column of a table.
type Column struct {
	Head  string // of the text; a table without any has no header line
	Key   string // of the JSON records
	Width int    // of the text; longer values push the rest of their line
	Left  bool   // a column of words, some of which may be missing
	// Digits is how many digits a column of hexadecimal numbers has that is wider than that; blanks stand before them.
	Digits int
}

// Doc is the content of one control file: parts in the order in which they are added. The zero Doc is empty.
type Doc struct {
	parts []part
}

// part is a piece of a document: fields with the same layout, a table, or lines.
type part struct {
	layout  layout
	key     string
	label   string
	value   Value
	columns []Column
	rows    iter.Seq[[]Value]
	lines   []string
}

type layout uint8

const (
	layoutField layout = iota
	layoutPlain
	layoutTable
	layoutLines
	layoutRecords
	layoutRaw
)

// Field adds a line "Label:    value unit" as in /proc/meminfo. Without a label it is in the JSON only, without a key
// in the text only.
func (d *Doc) Field(label, key string, v Value) {
	d.parts = append(d.parts, part{layout: layoutField, label: label, key: key, value: v})
}

// Plain adds a line "key value" as in /proc/vmstat.
func (d *Doc) Plain(key string, v Value) {
	d.parts = append(d.parts, part{layout: layoutPlain, label: key, key: key, value: v})
}

// Table adds a table. The slice that rows yields may be reused for the next row. A row without values stands for rows
// that are left out because they say nothing: text shows it as "*", the way hexdump does, and JSON leaves it out.
func (d *Doc) Table(key string, columns []Column, rows iter.Seq[[]Value]) {
	d.parts = append(d.parts, part{layout: layoutTable, key: key, columns: columns, rows: rows})
}

// Records adds a table that is in the JSON only.
func (d *Doc) Records(key string, columns []Column, rows iter.Seq[[]Value]) {
	d.parts = append(d.parts, part{layout: layoutRecords, key: key, columns: columns, rows: rows})
}

// Lines adds text as it is, a line each; in JSON an array of strings, or nothing without a key.
func (d *Doc) Lines(key string, lines ...string) {
	d.parts = append(d.parts, part{layout: layoutLines, key: key, lines: lines})
}

// Raw adds a line of text as it is, which the caller has escaped.
func (d *Doc) Raw(line string) {
	d.parts = append(d.parts, part{layout: layoutRaw, label: line})
}

// WriteText renders the document as text.
func (d *Doc) WriteText(w io.Writer) error {
	p := printer{w: w}
	for i := range d.parts {
		p.text(&d.parts[i])
	}
	return p.flush()
}

// WriteJSON renders the document as one JSON object, a member or record a line.
func (d *Doc) WriteJSON(w io.Writer) error {
	p := printer{w: w}
	p.buf = append(p.buf, `{"v":`...)
	p.buf = strconv.AppendInt(p.buf, jsonVersion, 10)
	for i := range d.parts {
		p.json(&d.parts[i])
	}
	p.buf = append(p.buf, "}\n"...)
	return p.flush()
}

// printer collects a document in pieces, so that a long one never lies in memory twice.
type printer struct {
	w   io.Writer
	buf []byte
	err error
}

const printerBytes = 16 << 10

// room hands a full buffer on. It returns false when the writer takes no more.
func (p *printer) room() bool {
	if p.err == nil && len(p.buf) >= printerBytes {
		_, p.err = p.w.Write(p.buf)
		p.buf = p.buf[:0]
	}
	return p.err == nil
}

func (p *printer) flush() error {
	if p.err == nil && len(p.buf) > 0 {
		_, p.err = p.w.Write(p.buf)
	}
	return p.err
}

// /proc/meminfo's columns: the label with its colon in 16, the number right-aligned in 8.
const (
	labelWidth  = 16
	numberWidth = 8
)

func (p *printer) text(t *part) {
	switch t.layout {
	case layoutField:
		if t.label == "" {
			return
		}
		start := len(p.buf)
		p.buf = append(append(p.buf, t.label...), ':')
		p.buf = appendRepeat(p.buf, ' ', max(1, labelWidth-(len(p.buf)-start)))
		width := labelWidth + numberWidth - (len(p.buf) - start) // a longer label takes the blanks before its number
		if t.value.kind == kindWord || t.value.kind == kindFlag || t.value.kind == kindNone {
			width = 0
		}
		p.buf = t.value.appendText(p.buf, width)
		p.buf = append(append(p.buf, t.value.unit()...), '\n')
	case layoutPlain:
		p.buf = append(append(p.buf, t.label...), ' ')
		p.buf = append(t.value.appendText(p.buf, 0), '\n')
	case layoutLines:
		for _, l := range t.lines {
			p.buf = append(appendEscaped(p.buf, l), '\n')
			if !p.room() {
				return
			}
		}
	case layoutRaw:
		p.buf = append(append(p.buf, t.label...), '\n')
	case layoutTable:
		p.textTable(t)
	}
	p.room()
}

func (p *printer) textTable(t *part) {
	last := len(t.columns) - 1
	headed := slices.ContainsFunc(t.columns, func(c Column) bool { return c.Head != "" })
	started := !headed
	for row := range t.rows {
		if !started {
			p.head(t.columns, row)
			started = true
		}
		if len(row) == 0 {
			p.buf = append(p.buf, '*')
		}
		for i, v := range row {
			width := t.columns[i].Width
			if t.columns[i].Left && v.kind == kindNone {
				v = Word("-")
			}
			if i == last && (v.kind == kindWord || v.kind == kindFlag) {
				width = 0 // no blanks at the end of a line
			}
			if digits := t.columns[i].Digits; digits > 0 && v.kind == kindHex {
				start := len(p.buf)
				p.buf = v.appendText(p.buf, digits)
				p.buf = slices.Insert(p.buf, start, slices.Repeat([]byte{' '}, max(0, width-(len(p.buf)-start)))...)
			} else {
				p.buf = v.appendText(p.buf, width)
			}
			if i != last {
				p.buf = append(p.buf, ' ')
			}
		}
		p.buf = append(p.buf, '\n')
		if !p.room() {
			return
		}
	}
	if !started {
		p.head(t.columns, nil)
	}
}

// head writes the header line, each head aligned as the values of the first row below it are.
func (p *printer) head(columns []Column, row []Value) {
	for i, c := range columns {
		missing := c.Width - len(c.Head)
		left := c.Left || i < len(row) && (row[i].kind == kindWord || row[i].kind == kindFlag)
		if !left && missing > 0 {
			p.buf = appendRepeat(p.buf, ' ', missing)
		}
		p.buf = append(p.buf, c.Head...)
		if i == len(columns)-1 {
			break
		}
		if left && missing > 0 {
			p.buf = appendRepeat(p.buf, ' ', missing)
		}
		p.buf = append(p.buf, ' ')
	}
	p.buf = append(p.buf, '\n')
}

func (p *printer) json(t *part) {
	if t.key == "" {
		return
	}
	p.buf = append(p.buf, ",\n"...)
	p.buf = appendJSONString(p.buf, t.key)
	p.buf = append(p.buf, ':')
	switch t.layout {
	case layoutField, layoutPlain:
		p.buf = t.value.appendJSON(p.buf)
	case layoutLines:
		p.buf = append(p.buf, '[')
		for i, l := range t.lines {
			if i > 0 {
				p.buf = append(p.buf, ",\n"...)
			}
			p.buf = appendJSONString(p.buf, l)
			if !p.room() {
				return
			}
		}
		p.buf = append(p.buf, ']')
	case layoutTable, layoutRecords:
		p.buf = append(p.buf, '[')
		separator := "\n"
		for row := range t.rows {
			if len(row) == 0 {
				continue
			}
			p.buf = append(p.buf, separator...)
			separator = ",\n"
			for i, v := range row {
				if i == 0 {
					p.buf = append(p.buf, '{')
				} else {
					p.buf = append(p.buf, ',')
				}
				p.buf = appendJSONString(p.buf, t.columns[i].Key)
				p.buf = append(p.buf, ':')
				p.buf = v.appendJSON(p.buf)
			}
			p.buf = append(p.buf, '}')
			if !p.room() {
				return
			}
		}
		p.buf = append(p.buf, ']')
	}
	p.room()
}

func appendRepeat(b []byte, c byte, n int) []byte {
	for range n {
		b = append(b, c)
	}
	return b
}

// appendEscaped appends s so that it stays on its line: control bytes and backslashes as \ooo, as in /proc/mounts.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c == 0x7f || c == '\\' {
			b = append(b, '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
			continue
		}
		b = append(b, c)
	}
	return b
}

func appendJSONString(b []byte, s string) []byte {
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) < 0 {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	quoted, err := json.Marshal(s)
	if err != nil { // a string always has a JSON form
		panic(err)
	}
	return append(b, quoted...)
}
