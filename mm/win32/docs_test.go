package win32

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "bring the calls in docs/win32.md up to date")

const docsFile = "../../docs/win32.md"

// row of docs/win32.md: the call with its parameters, what it does, and how that differs from Windows.
type docsRow struct {
	line  int
	cells []string
}

// aCall is how a row begins whose first cell is a call.
var aCall = regexp.MustCompile("^\\| `[^`]+` \\| ")

// docsRows finds the rows that are calls: the first cell of each is the call as code.
func docsRows(lines []string) (map[string]docsRow, error) {
	rows := make(map[string]docsRow)
	for i, line := range lines {
		if !aCall.MatchString(line) {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		name, _, _ := strings.Cut(strings.Trim(cells[0], "`"), " ")
		if len(cells) != 3 {
			return nil, fmt.Errorf("line %d: %d cells, want 3: call, what it does, differences", i+1, len(cells))
		}
		if _, ok := rows[name]; ok {
			return nil, fmt.Errorf("line %d: %s is there twice", i+1, name)
		}
		rows[name] = docsRow{i, cells}
	}
	return rows, nil
}

// fromTable are a call's first two cells, by the table of calls.
func fromTable(name string) (call, help string) {
	for line := range strings.Lines(Help()) {
		call, help, _ := strings.Cut(strings.TrimSpace(line), "    ")
		if call == name || strings.HasPrefix(call, name+" ") {
			return "`" + call + "`", help
		}
	}
	return "", ""
}

// TestDocs keeps docs/win32.md true: every call of the language is in it, with its parameters and help as `help` prints them,
// and nothing that is no call. The third column is people's.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	rows, err := docsRows(lines)
	if err != nil {
		t.Fatal(err)
	}
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		if table[name] == nil {
			wrong = append(wrong, name+" is no call")
			lines[rows[name].line] = ""
		}
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		call, help := fromTable(name)
		row, ok := rows[name]
		switch {
		case !ok:
			wrong = append(wrong, name+" is missing")
			lines = append(lines, "| "+call+" | "+help+" | |")
		case row.cells[0] != call || row.cells[1] != help:
			wrong = append(wrong, name+" is not as its help says")
			lines[row.line] = "| " + call + " | " + help + " | " + row.cells[2] + " |"
		}
	}
	if *update && len(wrong) > 0 {
		if err := os.WriteFile(docsFile, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("updated: new calls are at the end, for you to put into a table and to describe")
		return
	}
	for _, w := range wrong {
		t.Error(w)
	}
	if len(wrong) > 0 {
		t.Log("go test ./mm/win32 -run Docs -update brings docs/win32.md up to date")
	}
}
