package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSQLite fills a database from two connections at once, in both kinds of journal, with far less memory than the
// database has, and while everything is trimmed.
func TestSQLite(t *testing.T) {
	for _, journal := range []string{"wal", "delete"} {
		t.Run(journal, func(t *testing.T) {
			m := mountMemfs(t, options{memory: "32M", pageFile: "1G"})
			stopTrim := m.trimLoop(20 * time.Millisecond)
			db := m.path("db")
			rows := short(200_000, 20_000)
			setup := fmt.Sprintf("PRAGMA journal_mode=%s;\n", journal)
			created := run(t, "", "sqlite3", db, setup+
				"CREATE TABLE t(id INTEGER PRIMARY KEY, writer INTEGER, key INTEGER, payload TEXT); CREATE INDEX k ON t(key);")
			if strings.TrimSpace(created) != journal {
				t.Fatalf("journal_mode is %q, want %s", created, journal)
			}

			var writers sync.WaitGroup
			for w := range 2 {
				writers.Go(func() {
					var sql strings.Builder
					sql.WriteString(".bail on\n.timeout 300000\n")
					const batch = 1000
					for first := 1; first <= rows/2; first += batch {
						fmt.Fprintf(&sql, "BEGIN IMMEDIATE;\nWITH RECURSIVE c(x) AS (VALUES(%d) UNION ALL SELECT x+1 FROM c WHERE x < %d)\n"+
							"INSERT INTO t SELECT 2*x+%d, %d, (x*2654435761) %% 4294967296, printf('%%0400d', x*7919+%d) FROM c;\nCOMMIT;\n",
							first, first+batch-1, w, w, w)
					}
					if _, err := tryRun("", sql.String(), "sqlite3", db); err != nil {
						t.Error(err)
					}
				})
			}
			writers.Wait()
			trims := stopTrim()

			check := "PRAGMA integrity_check; SELECT count(*) FROM t; SELECT count(*) FROM t WHERE payload <> printf('%0400d', (id-writer)/2*7919+writer);"
			want := fmt.Sprintf("ok\n%d\n0\n", rows)
			if got := run(t, "", "sqlite3", db, check); got != want {
				t.Errorf("the database says %q, want %q", got, want)
			}
			m.pageOut()
			if got := run(t, "", "sqlite3", db, check); got != want {
				t.Errorf("paged out and read back, the database says %q, want %q", got, want)
			}
			t.Logf("%d rows, trimmed %d times meanwhile, %d pages written to the page file", rows, trims, m.vmstat().get(t, "pages_output"))
		})
	}
}
